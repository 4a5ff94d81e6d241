package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"
)

// reply is an answer on its way. A client that doesn't take it has the connection ended.
type reply struct {
	http.ResponseWriter
	control *http.ResponseController
	status  int
}

// Unwrap is for http.ResponseController.
func (w *reply) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *reply) WriteHeader(status int) {
	if w.status == 0 && status >= 200 || status == http.StatusSwitchingProtocols {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *reply) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n := 0
	for { // in pieces: a slow client that reads is waited for
		piece := b[n:min(n+maxPiece, len(b))]
		_ = w.control.SetWriteDeadline(time.Now().Add(slowReader)) // all our connections take one
		wrote, err := w.ResponseWriter.Write(piece)
		if n += wrote; err != nil || n == len(b) {
			return n, err
		}
	}
}

// maxPiece is the size of writes to a client, in bytes: with slowReader 6.4 kB/s at least.
const maxPiece = 64 << 10

// answered is the answer's status.
func (w *reply) answered() int {
	if w.status == 0 {
		return http.StatusOK
	}
	return w.status
}

func respond(w http.ResponseWriter, v any, err error) {
	if err != nil {
		writeError(w, err)
		return
	}
	writeJSON(w, http.StatusOK, v)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	send(w, "application/json", status, b)
}

// send sends an answer with its length, so that a client can tell when it breaks off.
func send(w http.ResponseWriter, contentType string, status int, b []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(b)+1))
	w.WriteHeader(status)
	_, err := w.Write(b) // b may be others' too: nothing is appended to it
	if err == nil {
		_, _ = w.Write([]byte{'\n'}) // a client that has gone is no error of ours
	}
}

// readJSON reads a body; an empty one leaves v as it is.
func readJSON(w http.ResponseWriter, r *http.Request, v any) error {
	return readJSONOf(w, r, v, maxBody)
}

// readJSONOf is readJSON with a limit of its own, in bytes.
func readJSONOf(w http.ResponseWriter, r *http.Request, v any, limit int64) error {
	b, err := readBody(w, r, limit)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	switch err := d.Decode(v); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value")
	}
	return nil
}

// readBody reads a body whole. A failure leaves the connection with its deadline, so that what
// else comes isn't waited for.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(slowWriter))
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err == nil {
		// Past the body net/http reads on, to notice when the client goes: that has no limit.
		_ = control.SetReadDeadline(time.Time{})
	}
	return b, err
}

// patient is the body of an upload: its client may take any time, as long as something comes.
type patient struct {
	io.Reader
	control *http.ResponseController
}

func (p *patient) Read(b []byte) (int, error) {
	_ = p.control.SetReadDeadline(time.Now().Add(slowWriter))
	n, err := p.Reader.Read(b)
	if errors.Is(err, io.EOF) {
		_ = p.control.SetReadDeadline(time.Time{})
	}
	return n, err
}
