package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/access"
	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/wire"
	"github.com/trayd/trayd/iso"
)

// maxImageRequest is of a request for an image, in bytes: it may have a file of sums in it.
const maxImageRequest = 2 << 20

// imageName is the pool and the name in a path; an empty pool for the one that stands for
// whichever has it.
func imageName(r *http.Request) (pool, name string) {
	if pool = r.PathValue("pool"); pool == wire.AnyPool {
		pool = ""
	}
	return pool, r.PathValue("image")
}

func (s *Server) listImages(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, s.Agent.Images())
}

// getImage waits, with ?wait=10s, until nothing of the image is under way.
func (s *Server) getImage(w http.ResponseWriter, r *http.Request) {
	pool, name := imageName(r)
	wait, err := waitOf(r)
	if err != nil {
		badRequest(w, err)
		return
	}
	i, err := s.Agent.Image(pool, name)
	if err == nil && wait > 0 {
		ctx, cancel := context.WithTimeout(r.Context(), wait)
		defer cancel()
		i, err = s.Agent.WaitImage(ctx, i.Pool, i.Name)
	}
	respond(w, i, err)
}

// registerImage begins a download, or announces an upload.
func (s *Server) registerImage(w http.ResponseWriter, r *http.Request) {
	var req wire.ImageRequest
	if err := readJSONOf(w, r, &req, maxImageRequest); err != nil {
		badRequest(w, err)
		return
	}
	i, err := s.Agent.RegisterImage(req, caller(r))
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
func (s *Server) uploadImage(w http.ResponseWriter, r *http.Request) {
	pool, name := imageName(r)
	var content io.Reader = &patient{r.Body, http.NewResponseController(w)}
	if f := openCallers(identity(r), r.Header.Get(wire.DescriptorHeader)); f != nil {
		defer f.Close()
		if s.Agent.CanClone(pool, f) {
			content = f
		}
	}
	i, err := s.Agent.UploadImage(r.Context(), pool, name, r.URL.Query().Get("announced") == "true", content, r.ContentLength, caller(r))
	if err != nil {
		writeError(w, err)
		return
	}
	writeJSON(w, http.StatusCreated, i)
}

// openCallers opens a file that the client has open for reading, so that it gets no file
// that it may not read itself; nil where that can't be.
func openCallers(by access.Identity, descriptor string) *os.File {
	// A process that has connected may have become another program since, with rights and
	// files that its user has not (set-user-ID), or its number another user's.
	if !isOf(by.PID, by.UID) {
		return nil
	}
	f := openDescriptor(by.PID, descriptor)
	if f != nil && (!isOf(by.PID, by.UID) || !mayRead(f, by.UID)) {
		f.Close()
		return nil
	}
	return f
}

// mayRead reports whether a user may read a file, of what was opened. How the client had it
// open was looked at a moment before, and it may have put another file under that number
// since, which it can name and not read (O_PATH). That it is readable for one of the user's
// groups alone isn't looked at: such a file is sent.
func mayRead(f *os.File, uid int) bool {
	info, err := f.Stat()
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && (uid == 0 || int(st.Uid) == uid || st.Mode&unix.S_IROTH != 0)
}

// isOf reports whether a process has the rights of a user, and no others: the kernel shows
// others as root's (proc_pid(5)).
func isOf(pid, uid int) bool {
	if pid <= 0 {
		return false
	}
	st, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	if err != nil {
		return false
	}
	s, ok := st.Sys().(*syscall.Stat_t)
	return ok && int(s.Uid) == uid
}

func openDescriptor(pid int, descriptor string) *os.File {
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

func (s *Server) removeImage(w http.ResponseWriter, r *http.Request) {
	pool, name := imageName(r)
	if err := s.Agent.RemoveImage(r.Context(), pool, name, caller(r)); err != nil {
		writeError(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *Server) changeImage(verb string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		pool, name := imageName(r)
		i, err := s.Agent.ChangeImage(r.Context(), verb, pool, name, caller(r))
		respond(w, i, err)
	}
}

func (s *Server) collectImages(w http.ResponseWriter, r *http.Request) {
	var unused time.Duration
	if text := r.URL.Query().Get("unused"); text != "" {
		var err error
		if unused, err = time.ParseDuration(text); err != nil {
			badRequest(w, err)
			return
		}
	}
	all, err := s.Agent.CollectImages(r.Context(), unused, r.URL.Query().Get("dry_run") == "true", caller(r))
	respond(w, all, err)
}

func badRequest(w http.ResponseWriter, err error) {
	p := &wire.Problem{Code: string(agent.BadRequest), Status: http.StatusBadRequest,
		Detail: "the request can't be read: " + err.Error(), Next: "see the API's description"}
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		p.Code, p.Status, p.Next = "request-too-large", http.StatusRequestEntityTooLarge, fmt.Sprintf("send at most %d bytes", large.Limit)
	case errors.Is(err, os.ErrDeadlineExceeded):
		p.Code, p.Status, p.Next = "request-too-slow", http.StatusRequestTimeout, fmt.Sprintf("send the whole body within %s", slowWriter)
	}
	writeProblem(w, p)
}

// inspectImage says all that there is to say of an image.
func (s *Server) inspectImage(w http.ResponseWriter, r *http.Request) {
	pool, name := imageName(r)
	if err := s.Agent.IsDisc(pool, name); err != nil {
		writeError(w, err)
		return
	}
	var report iso.Report
	err := s.Agent.ReadImage(r.Context(), pool, name, func(content io.ReaderAt, size int64) (err error) {
		report, err = iso.Inspect(io.NewSectionReader(content, 0, size), size)
		return err
	})
	respond(w, report, err)
}

// getContent is the image itself, or a part of it (Range). Its end is sent when the image's
// volume is off again: who has all of it may go on with the image at once.
func (s *Server) getContent(w http.ResponseWriter, r *http.Request) {
	pool, name := imageName(r)
	var body *withheld
	err := s.Agent.ReadImage(r.Context(), pool, name, func(content io.ReaderAt, size int64) error {
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
