//go:build integration

package integration_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/wire"
)

// How an image gets into a pool, or out of it.
const (
	byURL    = "url"
	byUpload = "upload"
	another  = "another-name" // of a content that the pool has, by URL
	twice    = "twice"        // the same, by upload
	removed  = "rm"
)

// imageCrashes are the fail points of the library: trayd dies there, and once more at each
// of the points after it while it puts in order what that has left. At the end the image
// is ready, or there is nothing of it.
var imageCrashes = []struct {
	verb, point string
	recovery    []string
	verity      bool
	ready       bool
}{
	{verb: byURL, point: "image-registered", ready: true,
		recovery: []string{"image-opened", "image-received", "image-verified", "image-placed", "image-ready"}},
	{verb: byURL, point: "image-opened", ready: true, recovery: []string{"image-opened"}},
	{verb: byURL, point: "image-received", ready: true, recovery: []string{"image-received"}},
	{verb: byURL, point: "image-verified", ready: true, recovery: []string{"image-verified", "image-placed"}},
	{verb: byURL, point: "image-placed", ready: true, recovery: []string{"image-verified", "image-placed", "image-ready"}},
	{verb: byURL, point: "image-ready", ready: true},
	{verb: byURL, point: "image-verified", verity: true, ready: true, recovery: []string{"image-placed", "image-ready"}},
	{verb: byURL, point: "image-placed", verity: true, ready: true, recovery: []string{"image-placed"}},
	{verb: byURL, point: "image-ready", verity: true, ready: true},

	{verb: byUpload, point: "image-opened"},
	{verb: byUpload, point: "image-received"},
	{verb: byUpload, point: "image-verified", ready: true, recovery: []string{"image-placed"}},
	{verb: byUpload, point: "image-placed", ready: true, recovery: []string{"image-ready"}},
	{verb: byUpload, point: "image-ready", ready: true},

	{verb: another, point: "image-registered", ready: true, recovery: []string{"image-ready"}},
	{verb: another, point: "image-received", ready: true, recovery: []string{"image-received"}},
	{verb: another, point: "image-ready", ready: true},
	{verb: twice, point: "image-opened"},
	{verb: twice, point: "image-received"},
	{verb: twice, point: "image-ready", ready: true},

	{verb: removed, point: "image-removing", recovery: []string{"image-removed"}},
	{verb: removed, point: "image-removed"},
	{verb: removed, point: "image-removing", verity: true, recovery: []string{"image-removed"}},
	{verb: removed, point: "image-removed", verity: true, recovery: []string{"image-removed"}},
}

// imageRig is a host with a pool and a web server.
type imageRig struct {
	*rig
	source *source
}

func newImageRig(t testing.TB) *imageRig {
	r := &imageRig{rig: newRig(t)}
	r.source = newSource(t, r.discs())
	r.extra = "[library]\nprivate_targets = [\"127.0.0.0/8\"]\n[[pool]]\nname = \"local\"\ntype = \"dir\"\npath = \"" + r.pool() + "\"\n"
	return r
}

func (r *imageRig) pool() string { return filepath.Join(r.dir, "pool") }

// images is the catalogue, by name.
func (r *imageRig) images() map[string]wire.Image {
	r.t.Helper()
	var list []wire.Image
	require.NoError(r.t, json.Unmarshal([]byte(r.must("-o", "json", "image", "ls")), &list))
	all := make(map[string]wire.Image)
	for _, i := range list {
		all[i.Name] = i
	}
	return all
}

// rest waits until nothing is under way.
func (r *imageRig) rest() map[string]wire.Image {
	r.t.Helper()
	var all map[string]wire.Image
	require.Eventually(r.t, func() bool {
		all = r.images()
		for _, i := range all {
			if i.State != wire.ImageReady && i.State != wire.ImageFailed {
				return false
			}
		}
		return true
	}, 20*time.Second, 20*time.Millisecond, "something stays under way")
	return all
}

// agrees demands that the pool has the contents of the catalogue, and nothing else.
func (r *imageRig) agrees() {
	t := r.t
	t.Helper()
	want := make(map[string]bool)
	for _, i := range r.rest() {
		require.Equal(t, wire.ImageReady, i.State, "%+v", i.Failure)
		want[i.Place] = true
		content, err := os.ReadFile(i.Place)
		require.NoError(t, err)
		sum := sha256.Sum256(content)
		require.Equal(t, i.SHA256, hex.EncodeToString(sum[:]), "the content of %s", i)
		require.Equal(t, i.SHA256+".iso", filepath.Base(i.Place))
		if i.Integrity != "" {
			want[strings.TrimSuffix(i.Place, ".iso")+".verity"] = true
		}
	}
	// The leftovers are looked for once trayd's own order is made, soon after its start.
	require.Eventually(t, func() bool { return maps.Equal(want, r.files()) }, 5*time.Second, 20*time.Millisecond,
		"the files of the pool: %v", r.files())
	require.Contains(t, r.must("state", "check"), "ok: ")
}

// files are the files of the pool.
func (r *imageRig) files() map[string]bool {
	all := make(map[string]bool)
	err := filepath.WalkDir(r.pool(), func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all[path] = true
		}
		return err
	})
	if !os.IsNotExist(err) {
		require.NoError(r.t, err)
	}
	return all
}

// TestImageKilledAtEveryStep kills trayd at each point at which an image is brought in or
// removed, and kills what puts that in order as well.
func TestImageKilledAtEveryStep(t *testing.T) {
	for _, c := range imageCrashes {
		name := c.verb + "/" + c.point
		if c.verity {
			name += "-verity"
		}
		t.Run(name, func(t *testing.T) {
			r := newImageRig(t)
			file := largeDisc(t, r.discs(), "DISC", 3<<20)
			url := r.source.URL + "/DISC.iso"
			integrity := ""
			if c.verity {
				integrity = "verity"
			}
			before := map[string]bool{}
			if c.verb == another || c.verb == twice || c.verb == removed {
				r.start("")
				r.ready()
				r.must("image", "add", "first", url, "--integrity", integrity)
				r.stop()
				before["first"] = true
			}
			r.start(c.point)
			r.ready()
			var got result
			switch c.verb {
			case byURL, another:
				url := url
				if c.point == "image-received" { // as another source, it isn't known to be the same
					url = r.source.URL + "/moved/DISC.iso"
				}
				got = r.trayctl("image", "add", "it", url, "--integrity", integrity)
			case byUpload, twice:
				got = r.trayctl("image", "add", "it", file)
			case removed:
				got = r.trayctl("image", "rm", "first")
				delete(before, "first")
			}
			require.Equal(t, 4, got.code, "%s%s", got.stdout, got.stderr)
			require.Contains(t, got.stderr, "next: ")
			r.died()
			for _, point := range c.recovery {
				t.Log("killed at", point)
				r.start(point)
				r.died()
			}
			r.start("")
			r.ready()
			r.agrees()
			if c.ready {
				before["it"] = true
			}
			names := map[string]bool{}
			for name := range r.images() {
				names[name] = true
			}
			require.Equal(t, before, names)
			if c.ready {
				want, err := os.ReadFile(file)
				require.NoError(t, err)
				got, err := os.ReadFile(r.images()["it"].Place)
				require.NoError(t, err)
				require.True(t, bytes.Equal(want, got), "the content is another")
				r.must("image", "verify", "it")
				require.Contains(t, r.must("image", "inspect", "it"), "DISC")
			}
			r.must("image", "add", "after", file)
			r.agrees()
			for name := range r.images() {
				r.must("image", "rm", name)
			}
			r.agrees()
		})
	}
}

// fetched matches what the state file has of a download with bytes that are durable.
var fetched = regexp.MustCompile(`"Bytes":[1-9]`)

// TestDownloadGoesOn: a download in whose middle trayd is killed, or stopped as systemd
// does it, goes on where it was.
func TestDownloadGoesOn(t *testing.T) {
	for _, end := range []string{"killed", "stopped"} {
		t.Run(end, func(t *testing.T) {
			r := newImageRig(t)
			file := largeDisc(t, r.discs(), "DISC", 40<<20)
			r.start("")
			r.ready()
			url := r.source.URL + "/slow/DISC.iso"
			r.must("image", "add", "it", url, "--detach")
			if end == "killed" { // the disk is flushed every 10 s, and that is written down in 5 s
				require.Eventually(t, func() bool {
					journal, err := os.ReadFile(r.stateFile())
					return err == nil && fetched.Match(journal)
				}, 20*time.Second, 20*time.Millisecond, "nothing of it is durable")
				r.kill()
			} else {
				require.Eventually(t, func() bool {
					p := r.images()["it"].Progress
					return p != nil && p.Bytes > 2<<20
				}, 9*time.Second, 20*time.Millisecond)
				began := time.Now()
				r.stop()
				t.Logf("it stopped in %s", time.Since(began).Round(time.Millisecond))
				require.Less(t, time.Since(began), 3*time.Second)
			}
			require.Empty(t, r.source.asked())
			r.start("")
			r.ready()
			var asked []string
			require.Eventually(t, func() bool {
				asked = append(asked, r.source.asked()...)
				return len(asked) > 0
			}, 5*time.Second, 20*time.Millisecond, "it isn't gone on with")
			t.Log(asked[0])
			require.Regexp(t, `^/slow/DISC.iso bytes=[1-9][0-9]{5,}-`, asked[0])
			r.source.hurry()
			r.agrees()
			want, err := os.ReadFile(file)
			require.NoError(t, err)
			got, err := os.ReadFile(r.images()["it"].Place)
			require.NoError(t, err)
			require.True(t, bytes.Equal(want, got), "the content is another")
		})
	}
}

// TestUploadCutOff: of an upload in whose middle trayd or the client goes nothing is left.
func TestUploadCutOff(t *testing.T) {
	for _, end := range []string{"killed", "stopped", "client"} {
		t.Run(end, func(t *testing.T) {
			r := newImageRig(t)
			file := largeDisc(t, r.discs(), "DISC", 1<<20)
			content, err := os.ReadFile(file)
			require.NoError(t, err)
			r.start("")
			r.ready()
			cmd := r.command("image", "add", "it", "-")
			in, err := cmd.StdinPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			_, err = in.Write(content)
			require.NoError(t, err)
			partial := filepath.Join(r.pool(), ".it.partial")
			require.Eventually(t, func() bool {
				_, err := os.Stat(partial)
				return err == nil && r.images()["it"].State == wire.ImageDownloading
			}, 5*time.Second, 20*time.Millisecond)
			switch end {
			case "killed":
				r.kill()
			case "stopped":
				began := time.Now()
				r.stop()
				t.Logf("it stopped in %s", time.Since(began).Round(time.Millisecond))
				require.Less(t, time.Since(began), 3*time.Second)
			case "client":
				require.NoError(t, cmd.Process.Kill())
			}
			_ = in.Close() // nobody may read it any more
			require.Error(t, cmd.Wait())
			if end != "client" {
				r.start("")
				r.ready()
			}
			require.Eventually(t, func() bool {
				_, err := os.Stat(partial)
				return os.IsNotExist(err)
			}, 5*time.Second, 20*time.Millisecond, "what was received is left")
			require.Empty(t, r.images())
			r.must("image", "add", "it", file)
			r.agrees()
		})
	}
}
