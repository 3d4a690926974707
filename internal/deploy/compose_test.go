// Package deploy_test holds docker-compose.yml against the program: what the file says is
// loaded by the library that the engine's own command loads it with, and run as it says.
package deploy_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/stretchr/testify/require"
)

// pixtools is what services of ours have as their image.
const pixtools = "pixtools:latest"

// stopTimeout is what a stop may take by default: DRAIN_DELAY, STOP_TIMEOUT, and 5 s for the last
// traces. An engine must wait for longer.
const stopTimeout = 5*time.Second + 25*time.Second + 5*time.Second

// compose is the project as it is without any .env.
func compose(t *testing.T) *types.Project {
	t.Helper()
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	options, err := cli.NewProjectOptions([]string{filepath.Join(root, "docker-compose.yml")},
		cli.WithWorkingDirectory(root), cli.WithProfiles([]string{"*"}), cli.WithResolvedPaths(true), cli.WithInterpolation(true))
	require.NoError(t, err)
	project, err := options.LoadProject(context.Background())
	require.NoError(t, err)
	return project
}

// ours are the services that run PixTools.
func ours(project *types.Project) []types.ServiceConfig {
	var found []types.ServiceConfig
	for _, name := range project.ServiceNames() {
		if s := project.Services[name]; s.Image == pixtools {
			found = append(found, s)
		}
	}
	return found
}

func TestComposeFile(t *testing.T) {
	t.Parallel()
	project := compose(t)
	var roles []string
	for _, s := range ours(project) {
		role, found := strings.CutPrefix(s.Command[len(s.Command)-1], "--roles=")
		require.True(t, found, s.Name)
		require.Equal(t, s.Name, role, "a service is named after its role: Prometheus finds it so")
		roles = append(roles, role)
		require.True(t, s.ReadOnly, s.Name)
		require.Equal(t, []string{"ALL"}, s.CapDrop, s.Name)
		require.Contains(t, s.SecurityOpt, "no-new-privileges:true", s.Name)
		require.NotContains(t, []string{"", "0", "root"}, strings.Split(s.User, ":")[0], s.Name)
		require.NotNil(t, s.StopGracePeriod, s.Name)
		require.Greater(t, time.Duration(*s.StopGracePeriod), stopTimeout, s.Name)
		require.NotNil(t, s.HealthCheck, s.Name)
	}
	slices.Sort(roles)
	require.Equal(t, []string{"api", "convert", "janitor", "ml", "projector", "saga", "webhooks"}, roles)
	for name, s := range project.Services {
		require.NotEmpty(t, s.Restart, name)
		require.NotNil(t, s.Deploy, name)
		require.NotNil(t, s.Deploy.Resources.Limits, name)
		require.Positive(t, int64(s.Deploy.Resources.Limits.MemoryBytes), name)
		require.Positive(t, float32(s.Deploy.Resources.Limits.NanoCPUs), name)
		require.NotContains(t, s.Image, ":latest-", name)
		if s.Image != pixtools {
			require.Regexp(t, `:[^:]*\d`, s.Image, "%s: a version, so that nobody is surprised", name)
		}
		for _, port := range s.Ports {
			require.Equal(t, "127.0.0.1", port.HostIP, "%s: only this machine, unless somebody says otherwise", name)
		}
		for _, v := range s.Volumes {
			if v.Type == types.VolumeTypeBind {
				_, err := os.Stat(v.Source)
				require.NoError(t, err, name)
			}
		}
	}
}
