package eventlog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"filippo.io/age"

	"github.com/pixtools/pixtools/internal/secrets"
)

// ErrNoKey says that secrets cannot be decrypted with what was given.
var ErrNoKey = errors.New("the secrets were encrypted for somebody else")

// exportSecrets writes the schema of secrets into a file for its owner only. In clear they are
// in memory alone, unless that was asked for.
func exportSecrets(ctx context.Context, e Export, work string, m *Manifest) error {
	tables, err := secrets.Dump(ctx, e.Secrets)
	if err != nil {
		return err
	}
	content, err := json.MarshalIndent(tables, "", "  ")
	if err != nil {
		return err
	}
	name := secretsFile
	if len(e.Recipients) > 0 {
		name = sealedFile
		if content, err = encrypt(content, e.Recipients); err != nil {
			return err
		}
	}
	path := filepath.Join(work, name)
	if err := writeSynced(path, content, 0o600); err != nil {
		return err
	}
	sum, size, err := sumOf(path)
	if err != nil {
		return err
	}
	m.Tables = []ManifestTable{}
	for _, t := range tables {
		m.Tables = append(m.Tables, ManifestTable{t.Name, t.Rows})
	}
	m.Files = append(m.Files, ManifestFile{Name: name, Bytes: size, SHA256: sum})
	return nil
}

func encrypt(content []byte, to []age.Recipient) ([]byte, error) {
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, to...)
	if err == nil {
		_, err = w.Write(content)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("encrypt the secrets: %w", err)
	}
	return sealed.Bytes(), nil
}

// openSecrets reads the tables that exportSecrets wrote.
func openSecrets(dir string, m *Manifest, identities []age.Identity) (tables []secrets.Table, err error) {
	i := slices.IndexFunc(m.Files, func(f ManifestFile) bool { return f.Name == secretsFile || f.Name == sealedFile })
	if i < 0 {
		return nil, fmt.Errorf("%s names no file with secrets", filepath.Join(dir, manifestFile))
	}
	path := filepath.Join(dir, m.Files[i].Name)
	if err := checkFile(path, m.Files[i].SHA256, m.Files[i].Bytes); err != nil {
		return nil, err
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if m.Files[i].Name == sealedFile {
		if content, err = decrypt(content, identities); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	if err := json.Unmarshal(content, &tables); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for i, t := range tables {
		if i >= len(m.Tables) || m.Tables[i] != (ManifestTable{t.Name, t.Rows}) {
			return nil, fmt.Errorf("%s has other tables than the manifest says", path)
		}
	}
	if len(tables) != len(m.Tables) {
		return nil, fmt.Errorf("%s has other tables than the manifest says", path)
	}
	return tables, nil
}

func decrypt(sealed []byte, identities []age.Identity) ([]byte, error) {
	if len(identities) == 0 {
		return nil, fmt.Errorf("%w: give the identity, or the passphrase, that belongs to it", ErrNoKey)
	}
	r, err := age.Decrypt(bytes.NewReader(sealed), identities...)
	var other *age.NoIdentityMatchError
	if errors.As(err, &other) {
		return nil, fmt.Errorf("%w: the identity, or the passphrase, is not the one that belongs to it (%w)", ErrNoKey, err)
	}
	if err != nil {
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	content, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	return content, nil
}
