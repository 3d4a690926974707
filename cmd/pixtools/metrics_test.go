package main

import "testing"

func everyMetricIsThere(t *testing.T, roles map[string]*program) {}
