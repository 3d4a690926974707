// Package egress makes HTTP clients for addresses that strangers name: they reach the
// public internet and what an operator allows, and nothing else that this machine can.
package egress

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// special are the ranges of IPv4 that are not of the public internet, after IANA's
// registry of special-purpose addresses.
var special = prefixes(
	"0.0.0.0/8",       // this network
	"10.0.0.0/8",      // private
	"100.64.0.0/10",   // shared with a carrier (CGNAT)
	"127.0.0.0/8",     // loopback
	"169.254.0.0/16",  // link-local, and with it clouds' metadata
	"172.16.0.0/12",   // private
	"192.0.0.0/24",    // protocol assignments
	"192.0.2.0/24",    // documentation
	"192.31.196.0/24", // AS112
	"192.52.193.0/24", // AMT
	"192.88.99.0/24",  // 6to4 relays
	"192.168.0.0/16",  // private
	"192.175.48.0/24", // AS112
	"198.18.0.0/15",   // benchmarking
	"198.51.100.0/24", // documentation
	"203.0.113.0/24",  // documentation
	"224.0.0.0/4",     // multicast
	"240.0.0.0/4",     // reserved, and broadcast
)

// global is all of IPv6 that is given out for the public internet: what lies elsewhere is
// loopback, unique local, link-local, multicast, NAT64 (64:ff9b::/96, 64:ff9b:1::/48),
// IPv4 in an old form, or nothing yet. special6 are the ranges in it that lead elsewhere.
var (
	global   = netip.MustParsePrefix("2000::/3")
	special6 = prefixes(
		"2001::/23",         // protocol assignments: Teredo, ORCHID, benchmarking
		"2001:db8::/32",     // documentation
		"2002::/16",         // 6to4: an IPv4 address in disguise
		"2620:4f:8000::/48", // AS112
		"3fff::/20",         // documentation
	)
)

func prefixes(all ...string) (parsed []netip.Prefix) {
	for _, p := range all {
		parsed = append(parsed, netip.MustParsePrefix(p))
	}
	return parsed
}

func within(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// Public says whether an address is one of the public internet.
func Public(a netip.Addr) bool {
	if a = a.Unmap(); a.Is4() { // IPv4 in IPv6's clothes is what it is
		return !within(special, a)
	}
	return a.IsValid() && a.Zone() == "" && global.Contains(a) && !within(special6, a)
}

// publicPort: the web's own ports, and those that no well-known service has.
func publicPort(port uint16) bool { return port == 80 || port == 443 || port >= 1024 }

// Refused says why an address is not called. It never holds the address.
type Refused struct{ Reason string }

func (e *Refused) Error() string { return e.Reason }

// Guard knows which addresses may be called.
type Guard struct {
	// hosts may resolve to anything; prefixes may be reached under any name.
	hosts    map[string]bool
	prefixes []netip.Prefix
}

// NewGuard makes one of addresses, ranges and hosts to allow besides the public internet.
func NewGuard(allow []string) (*Guard, error) {
	g := &Guard{hosts: map[string]bool{}}
	for _, entry := range allow {
		entry = strings.ToLower(strings.TrimSpace(entry))
		if p, err := netip.ParsePrefix(entry); err == nil {
			if p != p.Masked() {
				return nil, fmt.Errorf("WEBHOOK_ALLOW_PRIVATE names %q: use %s", entry, p.Masked())
			}
			g.prefixes = append(g.prefixes, p)
			continue
		}
		if a, err := netip.ParseAddr(entry); err == nil {
			g.prefixes = append(g.prefixes, netip.PrefixFrom(a, a.BitLen()))
			continue
		}
		if entry == "" || strings.ContainsAny(entry, "/:@ *") {
			return nil, fmt.Errorf("WEBHOOK_ALLOW_PRIVATE names %q: use an address range such as 10.1.0.0/16, an address, or a host's name without a port; several with commas between", entry)
		}
		g.hosts[entry] = true
	}
	return g, nil
}

// LongestURL bounds an address, in bytes.
const LongestURL = 2048

// CheckURL says what is wrong with an address that somebody names, as far as it can be
// seen without asking: where its host leads is seen when it is called.
func (g *Guard) CheckURL(address string) error {
	if len(address) > LongestURL {
		return &Refused{fmt.Sprintf("is longer than %d bytes", LongestURL)}
	}
	u, err := url.Parse(address)
	if err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https" {
		return &Refused{"must be an absolute http or https address"}
	}
	if u.User != nil {
		return &Refused{"must not hold a user or a password: requests are signed, see the header webhook-signature"}
	}
	port := map[string]uint64{"http": 80, "https": 443}[u.Scheme]
	if text := u.Port(); text != "" {
		if port, err = strconv.ParseUint(text, 10, 16); err != nil || port == 0 {
			return &Refused{"must have a port from 1 to 65535"}
		}
	}
	host := hostOf(u.Hostname())
	if g.hosts[host] {
		return nil
	}
	a, err := netip.ParseAddr(host)
	if err == nil {
		return g.check(netip.AddrPortFrom(a, uint16(port)))
	}
	// A range may be allowed in which every port is.
	if len(g.prefixes) == 0 && !publicPort(uint16(port)) {
		return errPort
	}
	return nil
}

// hostOf is a host as we compare it.
func hostOf(name string) string { return strings.TrimSuffix(strings.ToLower(name), ".") }

var (
	errPort    = &Refused{"must have the port 80, 443, or one from 1024 on"}
	errAddress = &Refused{"must lead to the public internet: its address is private, local or reserved (WEBHOOK_ALLOW_PRIVATE allows some)"}
)

// check judges an address that is about to be called.
func (g *Guard) check(a netip.AddrPort) error {
	if ip := a.Addr(); within(g.prefixes, ip) || within(g.prefixes, ip.Unmap()) {
		return nil
	}
	if !Public(a.Addr()) {
		return errAddress
	}
	if !publicPort(a.Port()) {
		return errPort
	}
	return nil
}

// checkDialed is check for what a dialer is about to connect to.
func (g *Guard) checkDialed(network, address string) error {
	if network != "tcp4" && network != "tcp6" {
		return &net.OpError{Op: "dial", Net: network, Err: errAddress}
	}
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return errAddress
	}
	return g.check(a)
}
