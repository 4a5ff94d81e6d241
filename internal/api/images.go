package api

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/wire"
	"github.com/trayd/trayd/iso"
)

// maxImageRequest is of a request for an image, in bytes: it may have a file of sums in it.
const maxImageRequest = 2 << 20

func (s *server) imageRoutes(mux *http.ServeMux) {
	const one = "/v1/pools/{pool}/images/{image}"
	mux.HandleFunc("GET /v1/images", s.listImages)
	mux.HandleFunc("POST /v1/images", s.registerImage)
	mux.HandleFunc("POST /v1/images/gc", s.collectImages)
	mux.HandleFunc("GET "+one, s.getImage)
	mux.HandleFunc("PUT "+one, s.uploadImage)
	mux.HandleFunc("DELETE "+one, s.removeImage)
	for _, verb := range []string{"cancel", "retry", "pin", "unpin", "verify"} {
		mux.HandleFunc("POST "+one+"/"+verb, s.changeImage(verb))
	}
	mux.HandleFunc("GET "+one+"/inspection", s.inspectImage)
	mux.HandleFunc("GET "+one+"/content", s.getContent)
}

// imageName is the pool and the name in a path; an empty pool for the one that stands for
// whichever has it.
func imageName(r *http.Request) (pool, name string) {
	if pool = r.PathValue("pool"); pool == wire.AnyPool {
		pool = ""
	}
	return pool, r.PathValue("image")
}

func (s *server) listImages(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, s.agent.Images())
}

// getImage waits, with ?wait=10s, until nothing of the image is under way.
func (s *server) getImage(w http.ResponseWriter, r *http.Request) {
	pool, name := imageName(r)
	i, err := s.agent.Image(pool, name)
	if wait, e := time.ParseDuration(r.URL.Query().Get("wait")); e == nil && err == nil && wait > 0 {
		ctx, cancel := withTimeout(r, min(wait, maxWait))
		defer cancel()
		i, err = s.agent.WaitImage(ctx, i.Pool, i.Name)
	}
	respond(w, i, err)
}

// maxWait is the longest that a client is kept waiting.
const maxWait = time.Minute

// registerImage begins a download, or announces an upload.
func (s *server) registerImage(w http.ResponseWriter, r *http.Request) {
	var req wire.ImageRequest
	if err := decode(http.MaxBytesReader(w, r.Body, maxImageRequest), &req); err != nil {
		badRequest(w, err)
		return
	}
	i, err := s.agent.RegisterImage(req, caller(r))
	if err != nil {
		writeError(w, err)
		return
	}
	w.Header().Set("Location", "/v1/pools/"+i.Pool+"/images/"+i.Name)
	writeJSON(w, http.StatusAccepted, i)
}

// uploadImage takes the image as the request's body, or, without reading that, from a file
// that the client has open, if its blocks can be shared. With ?announced=true it does so
// only if what the image is to be compared with, which was posted before, is still known.
func (s *server) uploadImage(w http.ResponseWriter, r *http.Request) {
	pool, name := imageName(r)
	var content io.Reader = r.Body
	if f := openCallers(caller(r).PID, r.Header.Get(wire.DescriptorHeader)); f != nil {
		defer f.Close()
		if s.agent.CanClone(pool, f) {
			content = f
		}
	}
	i, err := s.agent.UploadImage(r.Context(), pool, name, r.URL.Query().Get("announced") == "true", content, r.ContentLength, caller(r))
	if err != nil {
		writeError(w, err)
		return
	}
	writeJSON(w, http.StatusCreated, i)
}

// openCallers opens a file that the client has open for reading, so that it gets no file
// that it may not read itself; nil where that can't be.
func openCallers(pid int, descriptor string) *os.File {
	n, err := strconv.ParseUint(descriptor, 10, 16)
	if err != nil || pid <= 0 {
		return nil
	}
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, n))
	if err != nil {
		return nil
	}
	var flags int64
	for line := range strings.Lines(string(info)) {
		if text, ok := strings.CutPrefix(line, "flags:"); ok {
			if flags, err = strconv.ParseInt(strings.TrimSpace(text), 8, 64); err != nil {
				return nil
			}
		}
	}
	if flags&unix.O_PATH != 0 || flags&unix.O_ACCMODE == unix.O_WRONLY {
		return nil
	}
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/%d", pid, n), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil
	}
	return f
}

func (s *server) removeImage(w http.ResponseWriter, r *http.Request) {
	pool, name := imageName(r)
	if err := s.agent.RemoveImage(r.Context(), pool, name, caller(r)); err != nil {
		writeError(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *server) changeImage(verb string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		pool, name := imageName(r)
		i, err := s.agent.ChangeImage(r.Context(), verb, pool, name, caller(r))
		respond(w, i, err)
	}
}

func (s *server) collectImages(w http.ResponseWriter, r *http.Request) {
	var unused time.Duration
	if text := r.URL.Query().Get("unused"); text != "" {
		var err error
		if unused, err = time.ParseDuration(text); err != nil {
			badRequest(w, err)
			return
		}
	}
	all, err := s.agent.CollectImages(r.Context(), unused, r.URL.Query().Get("dry_run") == "true", caller(r))
	respond(w, all, err)
}

func badRequest(w http.ResponseWriter, err error) {
	writeProblem(w, &wire.Problem{Code: string(agent.BadRequest), Status: http.StatusBadRequest,
		Detail: "the request can't be read: " + err.Error(), Next: "see the API's description"})
}

func decode(r io.Reader, v any) error {
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	return d.Decode(v)
}

// inspectImage says all that there is to say of an image.
func (s *server) inspectImage(w http.ResponseWriter, r *http.Request) {
	pool, name := imageName(r)
	if err := s.agent.IsDisc(pool, name); err != nil {
		writeError(w, err)
		return
	}
	var report iso.Report
	err := s.agent.ReadImage(r.Context(), pool, name, func(content io.ReaderAt, size int64) (err error) {
		report, err = iso.Inspect(io.NewSectionReader(content, 0, size), size)
		return err
	})
	respond(w, report, err)
}

// getContent is the image itself, or a part of it (Range). Its end is sent when the image's
// volume is off again: who has all of it may go on with the image at once.
func (s *server) getContent(w http.ResponseWriter, r *http.Request) {
	pool, name := imageName(r)
	var body *withheld
	err := s.agent.ReadImage(r.Context(), pool, name, func(content io.ReaderAt, size int64) error {
		body = &withheld{ResponseWriter: w}
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(body, r, "", time.Time{}, io.NewSectionReader(content, 0, size))
		return nil
	})
	switch {
	case body != nil: // an error comes too late for this answer
		_, _ = w.Write(body.last) // the client may have gone
	case err != nil:
		writeError(w, err)
	}
}

// withheld holds back what was written last.
type withheld struct {
	http.ResponseWriter
	last []byte
}

func (w *withheld) Write(b []byte) (int, error) {
	if len(w.last) > 0 {
		if _, err := w.ResponseWriter.Write(w.last); err != nil {
			return 0, err
		}
	}
	w.last = append(w.last[:0], b...)
	return len(b), nil
}
