package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// spool is a directory of this process's own for files that are being worked on. It is
// locked as long as the process lives, however it ends; so the next one finds what a
// killed one left, and removes it.
type spool struct {
	dir  string
	lock *os.File
}

func openSpool(parent string) (*spool, error) {
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return nil, err
	}
	info, err := os.Stat(parent)
	if err != nil {
		return nil, err
	}
	// In a directory that everybody writes to, somebody else may have made it first.
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && int(owner.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("%s belongs to user %d, not to us (%d): remove it, or name another directory", parent, owner.Uid, os.Geteuid())
	}
	// One at a time: a directory that was made and is not locked yet looks like a dead one's.
	turn, err := lockDir(parent, syscall.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer turn.Close()
	if err := removeLeft(parent); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(parent, spoolPrefix)
	if err != nil {
		return nil, err
	}
	lock, err := lockDir(dir, syscall.LOCK_EX)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return &spool{dir: dir, lock: lock}, nil
}

const spoolPrefix = "process-"

// removeLeft removes the directories that no process has locked.
func removeLeft(parent string) error {
	dirs, err := filepath.Glob(filepath.Join(parent, spoolPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		lock, err := lockDir(dir, syscall.LOCK_EX|syscall.LOCK_NB)
		if err != nil {
			continue // in use, or gone
		}
		err = os.RemoveAll(dir)
		_ = lock.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func lockDir(dir string, how int) (*os.File, error) {
	file, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), how); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

func (s *spool) close() {
	_ = os.RemoveAll(s.dir)
	_ = s.lock.Close()
}
