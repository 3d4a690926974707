package apikeys

import (
	"context"
	"slices"
	"time"
)

// DefaultTenant owns every job where no keys are asked for.
const DefaultTenant = "default"

// Scope is what a key may do. None implies another.
type Scope string

// The scopes.
const (
	// Submit: what changes the tenant's jobs.
	Submit Scope = "submit"
	// Read: the tenant's jobs, their histories, its usage.
	Read Scope = "read"
	// Operate: what concerns the installation as a whole, whose ever the jobs are: dead letters,
	// queues, activity. It is for those who run it.
	Operate Scope = "operate"
)

// Scopes are all of them.
var Scopes = []Scope{Submit, Read, Operate}

// Identity is who sends a request.
type Identity struct {
	Tenant string
	// KeyID is public. It is empty where no keys are asked for.
	KeyID string
	// Name is what the key's maker called it.
	Name   string
	Scopes []Scope
	// ExpiresAt is zero for a key that does not expire.
	ExpiresAt time.Time
	// SubmitsPerMinute and ReadsPerMinute are the key's own limits; nil: the configured ones.
	SubmitsPerMinute, ReadsPerMinute *int
}

// Anyone is who sends requests where no keys are asked for: he may do everything.
func Anyone() Identity { return Identity{Tenant: DefaultTenant, Scopes: Scopes} }

// May says whether the scope is among the identity's.
func (i Identity) May(scope Scope) bool { return slices.Contains(i.Scopes, scope) }

type identityKey struct{}

// With gives the context of a request its sender.
func With(ctx context.Context, i Identity) context.Context {
	return context.WithValue(ctx, identityKey{}, i)
}

// From is the sender of the request that ctx is of. Where there is none it is nobody: a tenant
// without a name, which has no jobs.
func From(ctx context.Context) Identity {
	i, _ := ctx.Value(identityKey{}).(Identity)
	return i
}
