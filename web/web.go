// Package web is the browser's side: plain ES modules and CSS, embedded in the
// binary, everything from our own origin. app.js is where it begins.
package web

import "embed"

// Files is the page, and vendor/ with what the build copied from packages.
//
//go:embed *.html *.js *.css *.svg vendor
var Files embed.FS
