package testenv

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Secure is one server of each kind, all of which speak TLS and want a password. Their
// certificates are for 127.0.0.1, and from an authority that nobody else knows.
type Secure struct {
	CAFile string // the authority, in PEM
	// OtherCAFile is an authority of the same name and another key.
	OtherCAFile       string
	CertFile, KeyFile string // a client's, from the authority
	User, Password    string // at all servers

	Kafka string // where users log in: SCRAM-SHA-256, SCRAM-SHA-512, PLAIN
	// KafkaCerts is where clients show a certificate, in place of a password.
	KafkaCerts string
	// KafkaPlain is a listener without TLS, which lets everybody in.
	KafkaPlain string
	// DatabaseURL has the password, and the authority.
	DatabaseURL string
	Redis       string // host:port
	S3          string // https://
}

// StartSecure starts them, side by side; they end with the test.
func StartSecure(t testing.TB) *Secure {
	t.Helper()
	s := &Secure{User: "pixtools", Password: rand.Text()}
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ca, other := newAuthority(t), newAuthority(t)
	s.CAFile, s.OtherCAFile = write("ca.pem", ca.pem), write("other.pem", other.pem)
	client := ca.issue(t, s.User)
	s.CertFile, s.KeyFile = write("client.pem", client.cert), write("client.key", client.key)
	var starting sync.WaitGroup
	faults := make(chan error, 4)
	for _, start := range []func(*authority, identity) (func(), error){s.startKafka, s.startPostgres, s.startRedis, s.startS3} {
		keys := ca.issue(t, "server")
		starting.Go(func() {
			stop, err := start(ca, keys)
			if stop != nil {
				t.Cleanup(stop)
			}
			faults <- err
		})
	}
	starting.Wait()
	close(faults)
	for err := range faults {
		if err != nil {
			t.Fatalf("secure servers for tests: %v", err)
		}
	}
	return s
}

// authority signs certificates.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
}

// identity is a certificate and its key, in PEM.
type identity struct{ cert, key []byte }

const certificateLife = 24 * time.Hour

func newAuthority(t testing.TB) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "PixTools tests"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(certificateLife),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{key: key, cert: cert, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// issue makes a certificate for 127.0.0.1.
func (a *authority) issue(t testing.TB, name string) identity {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(certificateLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return identity{pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})}
}

// trusting is what a client of ours connects with.
func (a *authority) trusting() *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
}

// place writes a server's files into its directory, for it alone: PostgreSQL insists.
func place(dir string, as *syscall.Credential, files map[string][]byte) error {
	var faults []error
	for name, content := range files {
		path := filepath.Join(dir, name)
		faults = append(faults, os.WriteFile(path, content, 0o600))
		if as != nil {
			faults = append(faults, os.Chown(path, int(as.Uid), int(as.Gid)))
		}
	}
	return errors.Join(faults...)
}

func (s *Secure) startKafka(ca *authority, keys identity) (func(), error) {
	c, err := newCluster("")
	if err != nil {
		return nil, err
	}
	for _, mechanism := range []string{"SCRAM-SHA-256", "SCRAM-SHA-512"} {
		c.formatting = append(c.formatting, "--add-scram", fmt.Sprintf("%s=[name=%s,password=%s]", mechanism, s.User, s.Password))
	}
	ports := FreePorts(4)
	b := &broker{dir: filepath.Join(c.dir, "broker-0"), port: ports[0]}
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return nil, err
	}
	c.brokers = []*broker{b}
	s.KafkaPlain, s.Kafka, s.KafkaCerts = b.address(), localAddress(ports[2]), localAddress(ports[3])
	if err := place(b.dir, nil, map[string][]byte{"keys.pem": append(append([]byte{}, keys.key...), keys.cert...), "ca.pem": ca.pem}); err != nil {
		return nil, err
	}
	open := fmt.Sprintf("PLAINTEXT://%s,USERS://%s,CERTS://%s", s.KafkaPlain, s.Kafka, s.KafkaCerts)
	const scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
	// Of two lines for one property the later counts.
	properties := b.properties(1, ports[1], "1@"+localAddress(ports[1]), 1) + strings.Join([]string{"",
		"listeners=" + open + ",CONTROLLER://" + localAddress(ports[1]),
		"advertised.listeners=" + open,
		"listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,USERS:SASL_SSL,CERTS:SSL",
		"sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512,PLAIN",
		"listener.name.users.scram-sha-256.sasl.jaas.config=" + scram,
		"listener.name.users.scram-sha-512.sasl.jaas.config=" + scram,
		fmt.Sprintf("listener.name.users.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_%s=%q;", s.User, s.Password),
		"listener.name.certs.ssl.client.auth=required",
		"ssl.keystore.type=PEM", "ssl.keystore.location=" + b.file("keys.pem"),
		"ssl.truststore.type=PEM", "ssl.truststore.location=" + b.file("ca.pem"),
		"auto.create.topics.enable=false", ""}, "\n")
	if err := b.write(properties); err != nil {
		return nil, err
	}
	return c.Stop, c.start()
}

func (s *Secure) startPostgres(ca *authority, keys identity) (func(), error) {
	p, err := startPostgres(func(dir string, as *syscall.Credential) (postgresOptions, error) {
		err := place(dir, as, map[string][]byte{"server.pem": keys.cert, "server.key": keys.key, "password": []byte(s.Password),
			// After initdb: what the server goes by.
			"access.conf": []byte("hostssl all all 127.0.0.1/32 scram-sha-256\n")})
		return postgresOptions{
			initdb: []string{"-A", "scram-sha-256", "--pwfile", filepath.Join(dir, "password")},
			server: []string{"-c", "ssl=on", "-c", "ssl_cert_file=" + filepath.Join(dir, "server.pem"), "-c", "ssl_key_file=" + filepath.Join(dir, "server.key"),
				"-c", "hba_file=" + filepath.Join(dir, "access.conf")},
			login: "postgres:" + s.Password, parameters: "sslmode=verify-full&sslrootcert=" + s.CAFile,
		}, err
	})
	if err != nil {
		return nil, err
	}
	s.DatabaseURL = p.URL
	return p.Stop, nil
}

func (s *Secure) startRedis(ca *authority, keys identity) (func(), error) {
	if _, err := install("redis"); err != nil {
		return nil, err
	}
	dir, err := serviceDir(nil)
	if err != nil {
		return nil, err
	}
	if err := place(dir, nil, map[string][]byte{"cert.pem": keys.cert, "key.pem": keys.key, "ca.pem": ca.pem}); err != nil {
		return nil, err
	}
	port := FreePorts(1)[0]
	s.Redis = localAddress(port)
	file := func(name string) string { return filepath.Join(dir, name) }
	server := &Service{
		name: "redis", dir: dir, stop: syscall.SIGTERM,
		argv: []string{"redis-server", "--bind", "127.0.0.1", "--port", "0", "--tls-port", fmt.Sprint(port),
			"--tls-cert-file", file("cert.pem"), "--tls-key-file", file("key.pem"), "--tls-ca-cert-file", file("ca.pem"), "--tls-auth-clients", "optional",
			"--requirepass", s.Password, "--save", "", "--appendonly", "no"},
		ready: func(ctx context.Context) error { // refused for the password, but by it
			conn, err := (&tls.Dialer{Config: ca.trusting()}).DialContext(ctx, "tcp", s.Redis)
			if err != nil {
				return err
			}
			return conn.Close()
		},
	}
	return server.Stop, server.up()
}

func (s *Secure) startS3(ca *authority, keys identity) (func(), error) {
	server, err := startS3(func(dir string) (s3Options, error) {
		err := place(dir, nil, map[string][]byte{"public.crt": keys.cert, "private.key": keys.key})
		return s3Options{args: []string{"--certs-dir", dir}, user: s.User, password: s.Password, trusting: ca.trusting()}, err
	})
	if err != nil {
		return nil, err
	}
	s.S3 = server.Endpoint
	return server.Stop, nil
}
