//go:build !linux

package testenv

import "syscall"

// DieWithParent is a promise that only Linux can give: elsewhere a broker outlives a
// test process that is killed or that did not call Stop.
func DieWithParent() *syscall.SysProcAttr { return nil }
