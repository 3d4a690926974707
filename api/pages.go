package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"time"

	"github.com/klauspost/compress/gzhttp"

	"github.com/pixtools/pixtools/commands/operations"
	"github.com/pixtools/pixtools/web"
)

// settings are what the page checks a submission against before it sends it.
type settings struct {
	Authentication string                 `json:"authentication"`
	MaxUploadBytes int64                  `json:"max_upload_bytes"`
	MaxDirectBytes int64                  `json:"max_direct_upload_bytes"`
	MaxPixels      int64                  `json:"max_image_pixels"`
	MaxSide        int                    `json:"max_image_side"`
	AcceptedTypes  []string               `json:"accepted_types"`
	Operations     []operations.Operation `json:"operations"`
}

// pages serves the UI and the description of the API.
func (s *Server) pages() error {
	compress, err := gzhttp.NewWrapper()
	if err != nil {
		return err
	}
	serve := func(route, name string, body []byte, policy func(r *http.Request) string) {
		// Weak, since what is sent is compressed or not. No time: the binary knows none.
		tag := fmt.Sprintf(`W/"%x"`, sha256.Sum256(body))
		s.mux.Handle("GET "+route, compress(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", tag)
			w.Header().Set("Cache-Control", "no-cache") // kept, and asked for each time
			if policy != nil {
				w.Header().Set("Content-Security-Policy", policy(r))
			}
			http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(body))
		})))
	}
	policies := map[string]func(*http.Request) string{"index.html": s.pagePolicy, "docs.html": docsPolicy}
	routes := map[string]string{"index.html": "/{$}", "docs.html": "/docs"}
	if err := fs.WalkDir(web.Files, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		body, err := fs.ReadFile(web.Files, name)
		route := routes[name]
		if route == "" {
			route = "/" + name
		}
		serve(route, path.Base(name), body, policies[name])
		return err
	}); err != nil {
		return err
	}
	told, err := json.Marshal(settings{s.cfg.Auth.Mode, s.cfg.MaxUploadBytes, s.cfg.MaxDirectUploadBytes, s.cfg.Picture.MaxPixels, s.cfg.Picture.MaxSide, acceptedTypes, operations.All()})
	serve("/settings.json", "settings.json", told, nil)
	serve("/openapi.json", "openapi.json", s.spec, nil)
	return err
}

// pagePolicy allows our own origin, and the storage server: links to results, and requests that store large
// files, are signed for another origin.
func (s *Server) pagePolicy(r *http.Request) string {
	storage, err := s.Store.PublicOrigin(r.Context())
	if err != nil {
		s.Log.WarnContext(r.Context(), "the storage server's address is not known; the page shows no results", "error", err)
	}
	return "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: " + storage + "; connect-src 'self' " + storage +
		"; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}

// docsPolicy: the API reference, not ours, sets styles from its script.
func docsPolicy(*http.Request) string {
	return "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; base-uri 'none'; frame-ancestors 'none'"
}
