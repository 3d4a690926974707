// Package web is the browser's side: plain ES modules and CSS, embedded in the
// binary, everything from our own origin.
package web

import "embed"

// Files is the page, and vendor/ with what the build copied from packages.
//
//go:embed index.html docs.html app.js style.css vendor
var Files embed.FS
