package api

import (
	"context"

	"github.com/pixtools/pixtools/internal/apikeys"
)

// tenantOf is the tenant whose request this is.
func tenantOf(ctx context.Context) string { return apikeys.From(ctx).Tenant }
