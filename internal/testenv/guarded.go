package testenv

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// GuardedKafka is a Kafka of one broker that allows what its ACLs say and no more. Who
// comes to one of Brokers is its administrator.
type GuardedKafka struct {
	*KafkaCluster
	// Users is the address where users log in, with SCRAM-SHA-512 and without TLS.
	Users string
	as    map[string]string
}

// As is the address at which everybody is the user of that name, without a password.
func (g *GuardedKafka) As(user string) string { return g.as[user] }

// StartGuardedKafka starts one. users may log in with their passwords. Each of listeners is
// a user who has an address of his own, in place of a password; the names are lower case.
func StartGuardedKafka(users map[string]string, listeners ...string) (*GuardedKafka, error) {
	c, err := newCluster("")
	if err != nil {
		return nil, err
	}
	if err := c.compile("ByListener.java"); err != nil {
		return nil, err
	}
	ports := FreePorts(3 + len(listeners))
	b := &broker{dir: filepath.Join(c.dir, "broker-0"), port: ports[0]}
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return nil, err
	}
	c.brokers = []*broker{b}
	g := &GuardedKafka{KafkaCluster: c, Users: localAddress(ports[2]), as: map[string]string{}}
	open := []string{"PLAINTEXT://" + b.address(), "USERS://" + g.Users}
	protocols := []string{"PLAINTEXT:PLAINTEXT", "CONTROLLER:PLAINTEXT", "USERS:SASL_PLAINTEXT"}
	for i, user := range listeners {
		name := "AS_" + strings.ToUpper(strings.ReplaceAll(user, "-", "_"))
		g.as[user] = localAddress(ports[3+i])
		open = append(open, name+"://"+g.as[user])
		protocols = append(protocols, name+":PLAINTEXT")
	}
	// Of two lines for one property the later counts.
	properties := b.properties(1, ports[1], "1@"+localAddress(ports[1]), 1) + fmt.Sprintf(`
listeners=%s,CONTROLLER://%s
advertised.listeners=%[1]s
listener.security.protocol.map=%[3]s
principal.builder.class=ByListener
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
auto.create.topics.enable=false
sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.users.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
`, strings.Join(open, ","), localAddress(ports[1]), strings.Join(protocols, ","))
	if err := b.write(properties); err != nil {
		return nil, err
	}
	if err := c.start(); err != nil {
		return nil, err
	}
	if err := g.enroll(users); err != nil {
		c.Stop()
		return nil, err
	}
	return g, nil
}

// compile makes a class that the brokers find.
func (c *KafkaCluster) compile(source string) error {
	if _, err := install("java"); err != nil { // the compiler
		return err
	}
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	javac := exec.Command("javac", "-cp", filepath.Join(c.libs, "*"), "-d", filepath.Join(c.dir, "classes"),
		filepath.Join(root, "internal", "testenv", "kafka", source))
	if out, err := javac.CombinedOutput(); err != nil {
		return fmt.Errorf("javac: %w: %s", err, out)
	}
	return nil
}

func (g *GuardedKafka) enroll(users map[string]string) error {
	ctx, cancel := context.WithTimeout(context.Background(), kafkaStartTimeout)
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(g.Brokers()...))
	if err != nil {
		return err
	}
	defer client.Close()
	var all []kadm.UpsertSCRAM
	for user, password := range users {
		all = append(all, kadm.UpsertSCRAM{User: user, Mechanism: kadm.ScramSha512, Iterations: 4096, Password: password})
	}
	altered, err := kadm.NewClient(client).AlterUserSCRAMs(ctx, nil, all)
	if err == nil {
		err = altered.Error()
	}
	return err
}

// Tools makes a directory with kafka-acls.sh as Kafka's distribution has it, to be put into
// a PATH.
func (g *GuardedKafka) Tools(t testing.TB) string {
	t.Helper()
	build, err := install("kafkatools")
	if err != nil {
		t.Fatalf("Kafka's tools: %v", err)
	}
	classes := filepath.Join(build, "kafka-tools", "*") + ":" + filepath.Join(g.libs, "*")
	script := fmt.Sprintf("#!/bin/sh\nexec java -Xmx256m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Dlog4j2.configurationFile='%s' -cp '%s' org.apache.kafka.tools.AclCommand \"$@\"\n",
		g.brokers[0].file("log4j2.properties"), classes)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "kafka-acls.sh"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
