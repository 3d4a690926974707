package egress

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"
)

// Each special range, at its first and last address, and what lies beside it.
func TestPublic(t *testing.T) {
	for _, c := range []struct {
		name, refused string // addresses with blanks between
		allowed       string
	}{
		{"this network", "0.0.0.0 0.255.255.255", "1.0.0.0"},
		{"private, 10/8", "10.0.0.0 10.255.255.255", "9.255.255.255 11.0.0.0"},
		{"carrier (CGNAT)", "100.64.0.0 100.127.255.255", "100.63.255.255 100.128.0.0"},
		{"loopback", "127.0.0.0 127.0.0.1 127.255.255.255", "126.255.255.255 128.0.0.0"},
		{"link-local, metadata", "169.254.0.0 169.254.169.254 169.254.255.255", "169.253.255.255 169.255.0.0"},
		{"private, 172.16/12", "172.16.0.0 172.31.255.255", "172.15.255.255 172.32.0.0"},
		{"protocol assignments", "192.0.0.0 192.0.0.255", "191.255.255.255 192.0.1.0"},
		{"documentation", "192.0.2.0 192.0.2.255 198.51.100.0 198.51.100.255 203.0.113.0 203.0.113.255", "192.0.3.0 198.51.99.255 198.51.101.0 203.0.112.255 203.0.114.0"},
		{"AS112 and AMT", "192.31.196.0 192.52.193.255 192.175.48.0", "192.31.197.0 192.52.194.0 192.175.49.0"},
		{"6to4 relays", "192.88.99.0 192.88.99.255", "192.88.98.255 192.88.100.0"},
		{"private, 192.168/16", "192.168.0.0 192.168.255.255", "192.167.255.255 192.169.0.0"},
		{"benchmarking", "198.18.0.0 198.19.255.255", "198.17.255.255 198.20.0.0"},
		{"multicast", "224.0.0.0 239.255.255.255", "223.255.255.255"},
		{"reserved, broadcast", "240.0.0.0 255.255.255.255", ""},
		{"IPv6: none, loopback", ":: ::1", ""},
		{"IPv4-mapped", "::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254", "::ffff:8.8.8.8"},
		{"IPv4-compatible, translated", "::127.0.0.1 ::8.8.8.8 ::ffff:0:127.0.0.1", ""},
		{"NAT64", "64:ff9b::7f00:1 64:ff9b::808:808 64:ff9b:1::1 64:ff9b:1:ffff:ffff:ffff:ffff:ffff", ""},
		{"discard", "100::1 100:0:0:1::1", ""},
		{"Teredo", "2001:: 2001:0:ffff:ffff:ffff:ffff:ffff:ffff", ""},
		{"protocol assignments, IPv6", "2001:2::1 2001:10::1 2001:20::1 2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:200::"},
		{"documentation, IPv6", "2001:db8:: 2001:db8:ffff:ffff:ffff:ffff:ffff:ffff 3fff:: 3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db7:ffff:: 2001:db9:: 3fff:1000::"},
		{"6to4", "2002:: 2002:7f00:1:: 2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2003::"},
		{"AS112, IPv6", "2620:4f:8000::", "2620:4f:8001::"},
		{"segment routing", "5f00::1", ""},
		{"unique local", "fc00:: fd00::1 fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ""},
		{"link-local, IPv6", "fe80::1 fe80::1%eth0 febf:ffff::", ""},
		{"site-local", "fec0::1", ""},
		{"multicast, IPv6", "ff00:: ff02::1 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ""},
		{"beside global", "1fff:ffff:: 4000::", "2000:: 2a00:1450::1 2606:4700:4700::1111"},
		{"global", "", "1.1.1.1 8.8.8.8 93.184.216.34"},
	} {
		for _, a := range strings.Fields(c.refused) {
			require.False(t, Public(netip.MustParseAddr(a)), "%s: %s", c.name, a)
		}
		for _, a := range strings.Fields(c.allowed) {
			require.True(t, Public(netip.MustParseAddr(a)), "%s: %s", c.name, a)
		}
	}
	require.False(t, Public(netip.Addr{}))
}

func TestCheckURL(t *testing.T) {
	g, err := NewGuard([]string{"10.1.0.0/16", "intranet.test", "127.0.0.5"})
	require.NoError(t, err)
	strict, err := NewGuard(nil)
	require.NoError(t, err)
	long := "https://example.org/" + strings.Repeat("x", LongestURL-len("https://example.org/"))
	for _, address := range []string{"https://example.org/hook?x=1", "http://example.org:8080/", "https://93.184.216.34/", long, "https://EXAMPLE.org:443"} {
		require.NoError(t, strict.CheckURL(address), address)
		require.NoError(t, g.CheckURL(address), address)
	}
	for _, address := range []string{"http://10.1.2.3:22/", "http://intranet.test:22/", "http://Intranet.test.:22/", "http://127.0.0.5/"} {
		require.NoError(t, g.CheckURL(address), address)
		require.Error(t, strict.CheckURL(address), address)
	}
	for address, says := range map[string]string{
		long + "x": "longer than 2048 bytes", "ftp://example.org/": "http or https", "//example.org/": "http or https", "https:///x": "http or https", "": "http or https", "https://": "http or https",
		"https://user@example.org/": "user or a password", "https://user:x@example.org/": "user or a password",
		"https://example.org:0/": "port from 1", "https://example.org:65536/": "port from 1", "https://example.org:22/": "80, 443", "https://example.org:1023/": "80, 443",
		"http://127.0.0.1/": "public internet", "http://[::1]:8080/": "public internet", "http://[::ffff:10.0.0.1]/": "public internet", "http://[fe80::1%25eth0]/": "public internet",
		"http://169.254.169.254/latest/meta-data": "public internet", "https://93.184.216.34:25/": "80, 443",
	} {
		require.ErrorContains(t, strict.CheckURL(address), says, address)
	}
	for _, entry := range []string{"", "10.0.0.1/8", "host:80", "http://x", "*.example.org"} {
		_, err := NewGuard([]string{entry})
		require.ErrorContains(t, err, "WEBHOOK_ALLOW_PRIVATE", entry)
	}
}

// nameServer answers for names under test., each time with the next of its addresses.
func nameServer(t *testing.T, names map[string][]string) *net.Resolver {
	asked := map[string]*atomic.Int64{}
	for name := range names {
		asked[name] = &atomic.Int64{}
	}
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, request *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(request)
		q := request.Question[0]
		if all := names[strings.TrimSuffix(q.Name, ".")]; len(all) > 0 {
			n := asked[strings.TrimSuffix(q.Name, ".")].Add(1) - 1
			a := netip.MustParseAddr(all[min(int(n)/2, len(all)-1)]) // each resolution asks for A and AAAA
			header := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: 0}
			switch {
			case q.Qtype == dns.TypeA && a.Is4():
				m.Answer = append(m.Answer, &dns.A{Hdr: header, A: a.AsSlice()})
			case q.Qtype == dns.TypeAAAA && !a.Is4():
				m.Answer = append(m.Answer, &dns.AAAA{Hdr: header, AAAA: a.AsSlice()})
			}
		} else {
			m.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(m)
	})}
	go func() { _ = server.ActivateAndServe() }()
	t.Cleanup(func() { _ = server.Shutdown() })
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

func config(t *testing.T) Config {
	var c Config
	require.NoError(t, env.ParseWithOptions(&c, env.Options{Environment: map[string]string{}}))
	require.NoError(t, c.Validate())
	return c
}

// What a name leads to is judged when it is dialled, whatever it led to before.
func TestNamesThatLeadInside(t *testing.T) {
	var calls atomic.Int64
	receiver := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls.Add(1) }))
	t.Cleanup(receiver.Close)
	inside, err := url.Parse(receiver.URL)
	require.NoError(t, err)
	resolver := nameServer(t, map[string][]string{
		"private.hooks.test": {"10.0.0.7"}, "loop.hooks.test": {"127.0.0.1"}, "loop6.hooks.test": {"::1"}, "metadata.hooks.test": {"169.254.169.254"},
		"mapped.hooks.test": {"::ffff:127.0.0.1"}, "nat64.hooks.test": {"64:ff9b::7f00:1"}, "6to4.hooks.test": {"2002:7f00:1::1"}, "ula.hooks.test": {"fd00::1"},
		"rebinding.hooks.test": {"127.0.0.1", "10.0.0.1", "127.0.0.1"}, "allowed.hooks.test": {"127.0.0.1"},
	})
	g, err := NewGuard([]string{"allowed.hooks.test"})
	require.NoError(t, err)
	client := NewClient(config(t), g, resolver)
	get := func(host string) error {
		response, err := client.Get("http://" + net.JoinHostPort(host, inside.Port()) + "/")
		if err == nil {
			response.Body.Close()
		}
		return err
	}
	for _, host := range []string{"private.hooks.test", "loop.hooks.test", "loop6.hooks.test", "metadata.hooks.test", "mapped.hooks.test", "nat64.hooks.test", "6to4.hooks.test",
		"ula.hooks.test", "rebinding.hooks.test", "rebinding.hooks.test", "rebinding.hooks.test", "127.0.0.1", "localhost", "::1", "::ffff:127.0.0.1"} {
		var refused *Refused
		require.True(t, errors.As(get(host), &refused), "%s: %v", host, get(host))
	}
	require.Zero(t, calls.Load(), "nothing inside was called")
	require.NoError(t, get("allowed.hooks.test"))
	require.EqualValues(t, 1, calls.Load())
	var unknown *net.DNSError
	require.ErrorAs(t, get("nobody.hooks.test"), &unknown)

	byRange, err := NewGuard([]string{"127.0.0.0/8"})
	require.NoError(t, err)
	client = NewClient(config(t), byRange, resolver)
	require.NoError(t, get("loop.hooks.test"))
	require.NoError(t, get("mapped.hooks.test"))
	require.Error(t, get("private.hooks.test"))
}

func TestClientFollowsNothing(t *testing.T) {
	var calls atomic.Int64
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		http.Redirect(w, r, "/again", http.StatusTemporaryRedirect)
	}))
	t.Cleanup(receiver.Close)
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	g, err := NewGuard([]string{"127.0.0.1"})
	require.NoError(t, err)
	response, err := NewClient(config(t), g, nil).Get(receiver.URL)
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusTemporaryRedirect, response.StatusCode)
	require.EqualValues(t, 1, calls.Load())
}

func TestConfig(t *testing.T) {
	for name, change := range map[string]func(*Config, int){
		"WEBHOOK_TIMEOUT": func(c *Config, d int) {
			c.Timeout = pick(d, 100*time.Millisecond, time.Minute)
			c.ConnectTimeout = 50 * time.Millisecond
		},
		"WEBHOOK_CONNECT_TIMEOUT":  func(c *Config, d int) { c.ConnectTimeout = pick(d, 50*time.Millisecond, c.Timeout) },
		"WEBHOOK_MAX_HEADER_BYTES": func(c *Config, d int) { c.MaxHeaderBytes = pick[int64](d, 1<<10, 1<<20) },
		"WEBHOOK_MAX_ANSWER_BYTES": func(c *Config, d int) { c.MaxAnswerBytes = pick[int64](d, 0, 1<<20) },
		"WEBHOOK_MAX_IDLE_CONNS":   func(c *Config, d int) { c.MaxIdleConns = pick(d, 1, 10_000) },
	} {
		for at, good := range map[int]bool{0: false, 1: true, 2: true, 3: false} {
			c := config(t)
			change(&c, at)
			if good {
				require.NoError(t, c.Validate(), name)
			} else {
				require.ErrorContains(t, c.Validate(), name)
			}
		}
	}
}

// pick is just below a range, its ends, or just above it.
func pick[T int | int64 | time.Duration](at int, low, high T) T {
	return []T{low - 1, low, high, high + 1}[at]
}
