package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/pixtools/pixtools/api"
)

// openapiCommand prints the API's description, which is kept in schemas.
func openapiCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "openapi",
		Short: "Print the OpenAPI document",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			server, err := api.New(api.Config{MaxUploads: 1}, api.Parts{})
			if err != nil {
				return err
			}
			_, err = os.Stdout.Write(server.Spec())
			return err
		},
	}
}
