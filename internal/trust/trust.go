// Package trust makes the TLS configuration of clients, of files that variables name.
package trust

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
)

// File is a file in PEM that a variable of the environment names. With an empty Path it is
// not set.
type File struct{ Variable, Path string }

// Client is for a client that believes servers whom the authorities in ca vouch for; those of
// the system where ca is not set. With cert and key it shows a certificate of its own, which
// is read anew for each connection: such certificates are replaced while programs run. All
// faults are told at once.
func Client(ca, cert, key File) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	var faults []error
	if ca.Path != "" {
		var err error
		if cfg.RootCAs, err = authorities(ca); err != nil {
			faults = append(faults, err)
		}
	}
	switch {
	case (cert.Path == "") != (key.Path == ""):
		faults = append(faults, fmt.Errorf("%s and %s: set both, or neither", cert.Variable, key.Variable))
	case cert.Path != "":
		if _, err := tls.LoadX509KeyPair(cert.Path, key.Path); err != nil {
			faults = append(faults, fmt.Errorf("%s is %q and %s is %q: they must be a certificate and its key, in PEM: %w", cert.Variable, cert.Path, key.Variable, key.Path, err))
		}
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(cert.Path, key.Path)
			return &pair, err
		}
	}
	return cfg, errors.Join(faults...)
}

func authorities(ca File) (*x509.CertPool, error) {
	content, err := os.ReadFile(ca.Path)
	if err != nil {
		return nil, fmt.Errorf("%s is %q, which cannot be read: %w", ca.Variable, ca.Path, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(content) {
		return nil, fmt.Errorf("%s is %q, which holds no certificate in PEM", ca.Variable, ca.Path)
	}
	return pool, nil
}

// Refused says why a connection can never be, as long as neither side is configured
// otherwise; "" where that is not so, or cannot be known. A certificate that has expired may
// be replaced, without us.
func Refused(err error) string {
	var (
		unknown  x509.UnknownAuthorityError
		name     x509.HostnameError
		noTLS    tls.RecordHeaderError
		answered *net.OpError
	)
	switch {
	case errors.As(err, &unknown):
		return "its certificate is not from an authority that we trust"
	case errors.As(err, &name):
		return "its certificate is for another name than the one in the address"
	case errors.As(err, &noTLS), errors.Is(err, http.ErrSchemeMismatch):
		return "it speaks no TLS there"
	case errors.As(err, &answered) && answered.Op == "remote error" && strings.Contains(answered.Error(), "certificate"):
		return "it wants another client certificate than ours"
	}
	return ""
}
