package page

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// shelf is a set of files that are loaded when the first one is asked for.
type shelf struct {
	load func() (map[string][]byte, error)

	once  sync.Once // guards below
	files map[string]*file
	err   error
}

// file is nil, without an error, when there is none of that name. Names are looked up and
// never opened: a path that leads elsewhere is a name that nothing has.
func (s *shelf) file(name string) (*file, error) {
	s.once.Do(func() {
		var all map[string][]byte
		if all, s.err = s.load(); s.err != nil {
			return
		}
		s.files = make(map[string]*file, len(all))
		for name, b := range all {
			if s.files[name], s.err = newFile(name, b); s.err != nil {
				return
			}
		}
	})
	return s.files[name], s.err
}

// file is one file as it is sent.
type file struct {
	contentType string
	etag        string
	plain       []byte
	packed      []byte // gzip; nil where that saves nothing
}

func newFile(name string, b []byte) (*file, error) {
	kind, err := contentType(name)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	f := &file{contentType: kind, etag: hex.EncodeToString(sum[:16]), plain: b}
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(b); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	if packed.Len() < len(b) {
		f.packed = packed.Bytes()
	}
	return f, nil
}

// serve answers with the file, or with 304 when the client has it. An ETag is of one
// representation (RFC 9110 8.8.3), so that the packed one has its own.
func (f *file) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", f.contentType)
	h.Set("Vary", "Accept-Encoding")
	body, etag := f.plain, `"`+f.etag+`"`
	if f.packed != nil && takesGzip(r.Header.Values("Accept-Encoding")) {
		h.Set("Content-Encoding", "gzip")
		// ServeContent leaves the length to us where there is an encoding.
		h.Set("Content-Length", strconv.Itoa(len(f.packed)))
		body, etag = f.packed, `"`+f.etag+`-gzip"`
		r.Header.Del("Range") // nobody reads a packed page in parts
	}
	h.Set("ETag", etag)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

// takesGzip reports whether a client takes gzip (RFC 9110 12.5.3): named, and not with a
// quality of zero.
func takesGzip(accepted []string) bool {
	for part := range strings.SplitSeq(strings.Join(accepted, ","), ",") {
		coding, quality, _ := strings.Cut(strings.TrimSpace(part), ";")
		if !strings.EqualFold(strings.TrimSpace(coding), "gzip") {
			continue
		}
		value, ok := strings.CutPrefix(strings.TrimSpace(quality), "q=")
		if !ok {
			return true
		}
		q, err := strconv.ParseFloat(value, 64)
		return err == nil && q > 0
	}
	return false
}
