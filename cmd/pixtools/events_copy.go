package main

import "github.com/spf13/cobra"

func eventsExport() *cobra.Command { return &cobra.Command{Use: "export"} }
func eventsImport() *cobra.Command { return &cobra.Command{Use: "import"} }
