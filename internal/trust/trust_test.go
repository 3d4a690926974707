package trust

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// pair writes a certificate that vouches for itself, for name, and its key.
func pair(t *testing.T, dir, name string, until time.Time) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: until.Add(-48 * time.Hour), NotAfter: until, IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	require.NoError(t, err)
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	write := func(file, kind string, content []byte) string {
		path := filepath.Join(dir, file)
		require.NoError(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: content}), 0o600))
		return path
	}
	return write(name+".pem", "CERTIFICATE", der), write(name+".key", "PRIVATE KEY", raw)
}

func file(variable, path string) File { return File{variable, path} }

func TestClient(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := pair(t, dir, "one", time.Now().Add(time.Hour))
	otherCert, otherKey := pair(t, dir, "other", time.Now().Add(time.Hour))
	nothing := filepath.Join(dir, "nothing")
	require.NoError(t, os.WriteFile(nothing, []byte("no PEM"), 0o600))
	client := func(ca, cert, key string) (*tls.Config, error) {
		return Client(file("CA", ca), file("CERT", cert), file("KEY", key))
	}
	for _, c := range []struct{ ca, cert, key, says string }{
		{"/missing", "", "", `CA is "/missing", which cannot be read`},
		{nothing, "", "", "which holds no certificate in PEM"},
		{"", cert, "", "CERT and KEY: set both, or neither"},
		{"", "", key, "CERT and KEY: set both, or neither"},
		{"", cert, otherKey, "must be a certificate and its key"},
		{"", nothing, key, "must be a certificate and its key"},
		{"/missing", "/missing", "/missing", "CERT is"}, // both told
	} {
		_, err := client(c.ca, c.cert, c.key)
		require.ErrorContains(t, err, c.says)
	}
	cfg, err := client("", "", "")
	require.NoError(t, err)
	require.Nil(t, cfg.RootCAs, "the system's")
	require.Nil(t, cfg.GetClientCertificate)

	// One that is replaced is taken up.
	cfg, err = client(cert, cert, key)
	require.NoError(t, err)
	first, err := cfg.GetClientCertificate(nil)
	require.NoError(t, err)
	require.NoError(t, os.Rename(otherCert, cert))
	require.NoError(t, os.Rename(otherKey, key))
	second, err := cfg.GetClientCertificate(nil)
	require.NoError(t, err)
	require.NotEqual(t, first.Certificate, second.Certificate)
}

// TestHTTPServer: Go's HTTP client has an error of its own for it.
func TestHTTPServer(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	response, err := http.Get(strings.Replace(server.URL, "http://", "https://", 1))
	if err == nil {
		_ = response.Body.Close()
	}
	require.Equal(t, "it speaks no TLS there", Refused(err), "%v", err)
}

// TestRefused: what real handshakes come to.
func TestRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := pair(t, dir, "one", time.Now().Add(time.Hour))
	other, _ := pair(t, dir, "other", time.Now().Add(time.Hour))
	expired, expiredKey := pair(t, dir, "expired", time.Now().Add(-time.Minute))
	serve := func(certFile, keyFile string, clients tls.ClientAuthType) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		t.Cleanup(func() { _ = l.Close() })
		var identity []tls.Certificate
		if certFile != "" {
			loaded, err := tls.LoadX509KeyPair(certFile, keyFile)
			require.NoError(t, err)
			identity = append(identity, loaded)
		}
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					if identity == nil {
						_, _ = conn.Write([]byte("220 this is no TLS\r\n"))
						return
					}
					secured := tls.Server(conn, &tls.Config{Certificates: identity, ClientAuth: clients, MinVersion: tls.VersionTLS12})
					_ = secured.Handshake() // the client is asked
				}()
			}
		}()
		return l.Addr().String()
	}
	for _, c := range []struct{ address, ca, name, says string }{
		{serve(cert, key, tls.NoClientCert), cert, "one", ""},
		{serve(cert, key, tls.NoClientCert), other, "one", "its certificate is not from an authority that we trust"},
		{serve(cert, key, tls.NoClientCert), cert, "two", "its certificate is for another name than the one in the address"},
		{serve(expired, expiredKey, tls.NoClientCert), expired, "expired", ""}, // it may pass
		{serve("", "", tls.NoClientCert), cert, "one", "it speaks no TLS there"},
		{serve(cert, key, tls.RequireAnyClientCert), cert, "one", "it wants another client certificate than ours"},
	} {
		cfg, err := Client(file("CA", c.ca), File{}, File{})
		require.NoError(t, err)
		cfg.ServerName = c.name
		conn, err := tls.Dial("tcp", c.address, cfg)
		if err == nil { // a refusal of the client's certificate comes after the handshake
			_, err = conn.Read(make([]byte, 1))
			_ = conn.Close()
		}
		require.Error(t, err)
		require.Equal(t, c.says, Refused(err), "%v", err)
	}
}
