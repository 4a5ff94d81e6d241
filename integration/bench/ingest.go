package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/library/ingest"
)

const (
	ingestSize   = 750 << 20 // bytes: an installer's disc
	ingestRounds = 7
)

// ingest compares bringing an image in, hashed and durable, with each of its halves alone
// and with what people type. All read from one server on loopback, in turns; each runs in
// a process of its own, so that its memory can be told.
func (b *bench) ingest(ctx context.Context) error {
	fmt.Println("ingest ...")
	source, target := filepath.Join(b.dir, "source"), filepath.Join(b.dir, "target")
	if err := randomFile(source, ingestSize); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: http.FileServer(http.Dir(b.dir))}
	go server.Serve(l)
	b.atEnd(func() { server.Close() })
	url := fmt.Sprintf("http://%s/source", l.Addr())
	self, err := os.Executable()
	if err != nil {
		return err
	}
	shell := fmt.Sprintf("curl -s %s | tee %s | sha256sum >/dev/null && sync %s", url, target, target)
	commands := []struct {
		name string
		args []string
	}{
		{"ingest", []string{self, "part", "ingest", url, target}},
		{"hash", []string{self, "part", "hash", url, target}},
		{"write", []string{self, "part", "write", url, target}},
		{"shell", []string{"sh", "-c", shell}},
	}
	took := map[string][]time.Duration{}
	var grown []int64
	for round := range ingestRounds {
		for i := range commands { // nobody always goes first
			c := commands[(i+round)%len(commands)]
			if err := os.RemoveAll(target); err != nil {
				return err
			}
			unix.Sync() // of what others left
			began := time.Now()
			cmd := exec.CommandContext(ctx, c.args[0], c.args[1:]...)
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			if err != nil {
				return fmt.Errorf("%v: %w", c.args, err)
			}
			took[c.name] = append(took[c.name], time.Since(began))
			if c.name == "ingest" {
				var kib int64
				if _, err := fmt.Sscan(string(out), &kib); err != nil {
					return err
				}
				grown = append(grown, kib)
			}
		}
	}
	for _, d := range took {
		slices.Sort(d)
	}
	slower := "hash"
	if median(took["write"]) > median(took["hash"]) {
		slower = "write"
	}
	b.add("image of 750 MiB over HTTP, hashed and durable", spread(took["ingest"]), "only "+slower+" "+spread(took[slower]), ratio(took["ingest"], took[slower]), "at most 1.15x")
	b.add("the same", spread(took["ingest"]), "curl, tee, sha256sum, sync "+spread(took["shell"]), ratio(took["ingest"], took["shell"]), "at most 0.62x")
	b.add("memory that it takes", fmt.Sprintf("%.1f MiB", float64(slices.Max(grown))/1024), "-", "-", "at most 16 MiB")
	return nil
}

func randomFile(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.CopyN(f, rand.Reader, size); err != nil {
		return err
	}
	return f.Sync()
}

// part is one measurement, in a process of its own: how is ingest, hash or write.
func part(how, url, target string) error {
	r, err := http.Get(url)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	w, err := os.Create(target)
	if err != nil {
		return err
	}
	defer w.Close()
	sum, buf := sha256.New(), make([]byte, 1<<20)
	before, err := statusKiB("VmRSS")
	if err != nil {
		return err
	}
	switch how {
	case "ingest":
		_, err = ingest.Copy(context.Background(), w, r.Body, ingest.Options{Limit: ingestSize}, sum)
	case "hash":
		_, err = io.CopyBuffer(struct{ io.Writer }{sum}, r.Body, buf)
	case "write":
		if _, err = io.CopyBuffer(struct{ io.Writer }{w}, r.Body, buf); err == nil {
			err = w.Sync()
		}
	}
	if err != nil {
		return err
	}
	most, err := statusKiB("VmHWM")
	fmt.Println(most - before)
	return err
}

// statusKiB is a number of this process's /proc/self/status.
func statusKiB(key string) (n int64, err error) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), key+":"); ok {
			_, err := fmt.Sscan(rest, &n)
			return n, err
		}
	}
	return 0, fmt.Errorf("/proc/self/status has no %s", key)
}
