package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"filippo.io/age"
	"github.com/spf13/cobra"
)

// longestKeyFile bounds a file with a passphrase or with identities, in bytes.
const longestKeyFile = 64 << 10

// leastPassphrase is the least that a passphrase may have, in bytes.
const leastPassphrase = 12

func backupCommand() *cobra.Command {
	c := copying{blobs: true, secrets: true}
	var to []string
	var passphrase string
	var inClear bool
	cmd := &cobra.Command{
		Use:   "backup DIR",
		Short: "Write log, pictures and secrets into one directory, from which all can be restored",
		Long: "Write the log, the dead letters, the objects that they name and everything of the database's\n" +
			"schema pixtools_secrets (tenants' keys, API keys, webhook secrets and addresses) into a new\n" +
			"directory, as one set with checksums. PixTools may run meanwhile.\n\n" +
			"The secrets are encrypted with age (age-encryption.org): to the holders of public keys with\n" +
			"--recipient, so that the machine that makes back-ups cannot read them, or with a passphrase.\n" +
			"`age-keygen -o key.txt` makes such a key and prints its public part. Keep the other part, or the\n" +
			"passphrase, elsewhere than the back-up: without it the secrets in it are lost. The log, in which\n" +
			"names and addresses are sealed with those secrets, and the pictures are in the directory as they\n" +
			"are. docs/export.md describes its files.",
		Example: "  pixtools backup backup-2026-11-24 --recipient age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p\n" +
			"  pixtools backup backup-2026-11-24 --passphrase-file /run/secrets/backup",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			c.dir, c.out, c.errors = args[0], cmd.OutOrStdout(), cmd.ErrOrStderr()
			if c.recipients, err = recipients(to, passphrase, inClear); err != nil {
				return err
			}
			return c.export(cmd.Context())
		},
	}
	cmd.Flags().StringArrayVar(&to, "recipient", nil, "encrypt the secrets to this public key of age; several: whoever has one of them can restore")
	cmd.Flags().StringVar(&passphrase, "passphrase-file", "", fmt.Sprintf("encrypt the secrets with the passphrase in this file, of at least %d bytes", leastPassphrase))
	cmd.Flags().BoolVar(&inClear, "secrets-in-clear", false, "do not encrypt the secrets: who has the directory has them")
	return cmd
}

func restoreCommand() *cobra.Command {
	c := copying{blobs: true, secrets: true}
	var identity, passphrase string
	cmd := &cobra.Command{
		Use:   "restore DIR",
		Short: "Restore a back-up into an empty PixTools",
		Long: "Restore what pixtools backup wrote, into embedded parts or real servers, with any number of\n" +
			"partitions. They must be empty: whatever else is there is named, and nothing is done. Every\n" +
			"checksum is verified, and the secrets are decrypted, before anything is written. A restore that\n" +
			"was interrupted, however, goes on when it is started again. No `pixtools serve` may run\n" +
			"meanwhile; start it afterwards: it makes the read model and the saga's state of the log. Then\n" +
			"`pixtools verify` looks over all of it.",
		Example: "  pixtools restore backup-2026-11-24 --identity key.txt\n" +
			"  KAFKA_BROKERS=kafka-1:9092 pixtools restore backup-2026-11-24 --passphrase-file /run/secrets/backup --dry-run",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			c.dir, c.out, c.errors = args[0], cmd.OutOrStdout(), cmd.ErrOrStderr()
			if c.identities, err = identities(identity, passphrase); err != nil {
				return err
			}
			return c.load(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&identity, "identity", "", "a file with the keys of which one belongs to the back-up, as age-keygen writes it")
	cmd.Flags().StringVar(&passphrase, "passphrase-file", "", "a file with the back-up's passphrase")
	cmd.Flags().BoolVar(&c.dry, "dry-run", false, "check the back-up and the log that is there, say what would be done, write nothing")
	return cmd
}

// recipients are who can read the secrets; none: everybody.
func recipients(to []string, passphraseFile string, inClear bool) (all []age.Recipient, err error) {
	ways := 0
	for _, chosen := range []bool{len(to) > 0, passphraseFile != "", inClear} {
		if chosen {
			ways++
		}
	}
	if ways != 1 {
		return nil, errors.New("say once how the secrets are encrypted: --recipient for a public key of age, --passphrase-file, or --secrets-in-clear not to encrypt them")
	}
	for _, text := range to {
		found, err := age.ParseRecipients(strings.NewReader(text))
		if err != nil {
			return nil, fmt.Errorf("--recipient is %q: it must be a public key as age-keygen prints it, age1...: %w", text, err)
		}
		all = append(all, found...)
	}
	if passphraseFile == "" {
		return all, nil
	}
	text, err := passphrase(passphraseFile)
	if err != nil {
		return nil, err
	}
	if len(text) < leastPassphrase {
		return nil, fmt.Errorf("--passphrase-file: the passphrase in %s has %d bytes: it must have %d or more", passphraseFile, len(text), leastPassphrase)
	}
	recipient, err := age.NewScryptRecipient(text)
	return []age.Recipient{recipient}, err
}

func identities(file, passphraseFile string) ([]age.Identity, error) {
	switch {
	case file != "" && passphraseFile != "":
		return nil, errors.New("--identity and --passphrase-file are both given: a back-up is encrypted in one of these ways")
	case file != "":
		text, err := keyFile("--identity", file)
		if err != nil {
			return nil, err
		}
		all, err := age.ParseIdentities(strings.NewReader(text))
		if err != nil {
			return nil, fmt.Errorf("--identity: %s holds no keys as age-keygen writes them: %w", file, err)
		}
		return all, nil
	case passphraseFile != "":
		text, err := passphrase(passphraseFile)
		if err != nil {
			return nil, err
		}
		identity, err := age.NewScryptIdentity(text)
		return []age.Identity{identity}, err
	}
	return nil, nil // in clear, or it will be missed
}

// passphrase is a file's first line, without its end.
func passphrase(file string) (string, error) {
	text, err := keyFile("--passphrase-file", file)
	if err != nil {
		return "", err
	}
	text, rest, _ := strings.Cut(text, "\n")
	text = strings.TrimSuffix(text, "\r")
	if text == "" || strings.TrimSpace(rest) != "" {
		return "", fmt.Errorf("--passphrase-file: %s must hold one line, the passphrase", file)
	}
	return text, nil
}

func keyFile(flag, path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("%s: %w", flag, err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, longestKeyFile+1))
	if err == nil && len(text) > longestKeyFile {
		err = fmt.Errorf("%s has more than %d bytes", path, longestKeyFile)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", flag, err)
	}
	return string(text), nil
}
