package agent

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/library"
)

// upload is content that comes as long as anybody reads it.
type upload struct{ began chan struct{} }

func (u *upload) Read(p []byte) (int, error) {
	if u.began != nil {
		close(u.began)
		u.began = nil
	}
	time.Sleep(time.Millisecond)
	return 1, nil
}

// TestStopWhileAdding: an upload doesn't outlive the agent, and leaves nothing.
func TestStopWhileAdding(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Pools = []library.Pool{{Name: "local", Type: library.Dir, Path: t.TempDir()}} })
	r.start()
	began, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := r.agent.AddImage(t.Context(), "local", "x", &upload{began}, 1<<20, Caller{Name: "test"})
		ended <- err
	}()
	<-began
	r.stop()
	select {
	case err := <-ended:
		require.ErrorContains(t, err, "broke off")
	case <-time.After(patience):
		require.FailNow(t, "it goes on")
	}
	require.NoFileExists(t, r.opts.Pools[0].Path+"/.x.partial")
}
