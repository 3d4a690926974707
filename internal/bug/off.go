//go:build !bugs

// Package bug holds the switches of deliberate bugs, with which the fault runs show that
// their checker finds what it is there to find (bench/faults, make faults-bugs). They are
// made where such a bug would really be made, one line each.
//
// Without the build tag bugs a switch is the constant false: the compiler removes what
// stands behind it, and no variable turns it on.
package bug

import "context"

// On says whether the bug of that name is to be made.
func On(string) bool { return false }

// Slow returns at once.
func Slow(context.Context) error { return nil }

// Panic does nothing.
func Panic(int32) {}
