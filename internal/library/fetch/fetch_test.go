package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestAFileIsFetched(t *testing.T) {
	want := random(5<<20 + 3)
	for title, serving := range map[string]func(w http.ResponseWriter, r *http.Request){
		"with its size": func(w http.ResponseWriter, r *http.Request) { file(w, r, want, `"a"`) },
		"in chunks": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/octet-stream")
			for p := want; len(p) > 0; p = p[min(len(p), 100_000):] {
				_, _ = w.Write(p[:min(len(p), 100_000)])
				_ = http.NewResponseController(w).Flush()
			}
		},
	} {
		t.Run(title, func(t *testing.T) {
			s, seen := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) { serving(w, r) })
			d := newDisk(t)
			res, err := newClient(t).Run(t.Context(), d.job(s.URL+"/a/disc.iso?token=secret#part"))
			require.NoError(t, err)
			d.has(want)
			require.Equal(t, s.URL+"/a/disc.iso", res.URL)
			require.EqualValues(t, len(want), res.Size)
			require.Equal(t, "identity", seen.get(0).Header.Get("Accept-Encoding"))
			require.Equal(t, "secret", seen.get(0).URL.Query().Get("token"))
			last := d.all[len(d.all)-1]
			require.Equal(t, Done, last.Phase)
			require.EqualValues(t, len(want), last.Bytes)
			require.EqualValues(t, len(want), last.State.Bytes, "durable")
			require.NotContains(t, fmt.Sprintf("%+v", d.all), "secret")
		})
	}
}

func TestAnEmptyFile(t *testing.T) {
	s, _ := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) { file(w, r, nil, "") })
	d := newDisk(t)
	res, err := newClient(t).Run(t.Context(), d.job(s.URL))
	require.NoError(t, err)
	require.Zero(t, res.Size)
	d.has(nil)
}

func TestCutAtAnyByteTheResultIsTheSame(t *testing.T) {
	want := random(12<<20 + 1)
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			s, seen := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) { file(w, r, want, `"a"`) })
			dice := rand.New(rand.NewPCG(seed, 1))
			cuts := make([]int64, 200)
			for i := range cuts {
				cuts[i] = dice.Int64N(1 << (4 + dice.Int64N(19))) // small ones are as likely as large ones
			}
			url := chaos(t, s.Listener.Addr().String(), func(n int) (int64, bool) { return cuts[n%len(cuts)], n%2 == 0 })
			d := newDisk(t)
			_, err := newClient(t, func(o *Options) { o.Attempts = 2000 }).Run(t.Context(), d.job(url))
			require.NoError(t, err)
			d.has(want)
			require.Equal(t, 1, d.sums, "it went on, and didn't begin anew")
			require.Greater(t, seen.len(), 1)
		})
	}
}

func TestAnotherProcessGoesOn(t *testing.T) {
	want := random(9<<20 + 5)
	s, seen := serve(t, func(w http.ResponseWriter, r *http.Request, n int) {
		if n == 1 {
			cut(w, r, want, `"a"`, 6<<20+17)
			return
		}
		file(w, r, want, `"a"`)
	})
	d := newDisk(t)
	once := newClient(t, func(o *Options) { o.Attempts = 1 })
	_, err := once.Run(t.Context(), d.job(s.URL+"/x?first=signature"))
	requireKind(t, Truncated, err)
	state := d.state()
	require.Equal(t, State{URL: s.URL + "/x", Size: int64(len(want)), Validator: `"a"`, Bytes: 6<<20 + 17}, state)

	again := d.job(s.URL + "/x?second=signature")
	again.State = state
	res, err := once.Run(t.Context(), again)
	require.NoError(t, err)
	d.has(want)
	require.Equal(t, state.Bytes, res.Resumed)
	require.Equal(t, "bytes=6291473-", seen.get(1).Header.Get("Range"))
	require.Equal(t, `"a"`, seen.get(1).Header.Get("If-Range"))

	// All of it was there: nothing is asked for.
	again.State = d.state()
	_, err = once.Run(t.Context(), again)
	require.NoError(t, err)
	d.has(want)
	require.Equal(t, 2, seen.len())
}

func TestTheMirrorThatBrokeOffGoesFirst(t *testing.T) {
	want := random(4 << 20)
	first, asked := serve(t, func(w http.ResponseWriter, _ *http.Request, _ int) { w.WriteHeader(http.StatusNotFound) })
	second, _ := serve(t, func(w http.ResponseWriter, r *http.Request, n int) {
		if n == 1 {
			cut(w, r, want, `"a"`, 3<<20)
			return
		}
		file(w, r, want, `"a"`)
	})
	d := newDisk(t)
	once := newClient(t, func(o *Options) { o.Attempts = 1 })
	_, err := once.Run(t.Context(), d.job(first.URL, second.URL))
	require.Error(t, err)
	j := d.job(first.URL, second.URL)
	j.State = d.state()
	res, err := once.Run(t.Context(), j)
	require.NoError(t, err)
	d.has(want)
	require.EqualValues(t, 3<<20, res.Resumed)
	require.Equal(t, 1, res.Mirror)
	require.Equal(t, 1, asked.len())

	// A mirror that has nothing leaves what is there, and its state.
	gone, _ := serve(t, func(w http.ResponseWriter, _ *http.Request, _ int) { w.WriteHeader(http.StatusNotFound) })
	j = d.job(gone.URL, gone.URL+"/2")
	before := d.state()
	j.State = before
	_, err = once.Run(t.Context(), j)
	requireKind(t, NotFound, err)
	require.Equal(t, before, d.state())
	d.has(want)
}

func TestLessOnTheDiskThanTheStateSays(t *testing.T) {
	want := random(3 << 20)
	s, seen := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) { file(w, r, want, `"a"`) })
	d := newDisk(t)
	require.NoError(t, os.WriteFile(d.path, want[:1000], 0o600))
	j := d.job(s.URL)
	j.State = State{URL: s.URL, Size: 3 << 20, Validator: `"a"`, Bytes: 2 << 20}
	_, err := newClient(t).Run(t.Context(), j)
	require.NoError(t, err)
	d.has(want)
	require.Equal(t, "bytes=1000-", seen.get(0).Header.Get("Range"))
}

func TestWhatCannotBeGoneOnWithBeginsAtZero(t *testing.T) {
	old, want := random(6<<20), random(6<<20 + 1)[1:]
	longer := random(7 << 20)
	for _, row := range []struct {
		title  string
		second func(w http.ResponseWriter, r *http.Request) // the answer to the request for the rest
		want   []byte
	}{
		{"another ETag", func(w http.ResponseWriter, r *http.Request) { file(w, r, want, `"b"`) }, want},
		{"another size", func(w http.ResponseWriter, r *http.Request) { file(w, r, longer, `"b"`) }, longer},
		{"ranges are ignored", func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("Range")
			file(w, r, old, `"a"`)
		}, old},
		{"If-Range is ignored, another ETag", func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("If-Range") == `"a"` {
				r.Header.Del("If-Range")
			}
			file(w, r, want, `"b"`)
		}, want},
		{"If-Range is ignored, another size", func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("If-Range") == `"a"` {
				r.Header.Del("If-Range")
			}
			file(w, r, longer, "")
		}, longer},
		{"another part than was asked for", func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				r.Header.Set("Range", "bytes=5-")
			}
			file(w, r, old, `"a"`)
		}, old},
		{"no such range", func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			}
			file(w, r, want, `"b"`)
		}, want},
		{"a Content-Range of nonsense", func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				w.Header().Set("Content-Range", "bytes 0-*/x")
				w.WriteHeader(http.StatusPartialContent)
				return
			}
			file(w, r, old, `"a"`)
		}, old},
	} {
		t.Run(row.title, func(t *testing.T) {
			s, _ := serve(t, func(w http.ResponseWriter, r *http.Request, n int) {
				if n == 1 {
					cut(w, r, old, `"a"`, 5<<20)
					return
				}
				row.second(w, r)
			})
			d := newDisk(t)
			res, err := newClient(t).Run(t.Context(), d.job(s.URL))
			require.NoError(t, err)
			d.has(row.want)
			require.Zero(t, res.Resumed)
			require.Equal(t, 2, d.sums)
		})
	}
}

func TestWithoutAStrongValidatorNothingIsPutTogether(t *testing.T) {
	one, two := random(4<<20), random(4<<20 + 1)[1:]
	for _, tag := range []string{"", `W/"a"`, "a"} {
		s, seen := serve(t, func(w http.ResponseWriter, r *http.Request, n int) {
			if n == 1 {
				cut(w, r, one, tag, 3<<20)
				return
			}
			file(w, r, two, tag)
		})
		d := newDisk(t)
		_, err := newClient(t).Run(t.Context(), d.job(s.URL))
		require.NoError(t, err)
		d.has(two)
		require.Empty(t, seen.get(1).Header.Get("Range"))
	}
}

func TestAFileThatChangesAllTheTime(t *testing.T) {
	s, seen := serve(t, func(w http.ResponseWriter, r *http.Request, n int) {
		cut(w, r, random(20<<20), fmt.Sprintf(`"%d"`, n), 8<<20)
	})
	d := newDisk(t)
	_, err := newClient(t, func(o *Options) { o.Attempts = 20 }).Run(t.Context(), d.job(s.URL))
	requireKind(t, Changed, err)
	require.Less(t, seen.len(), 8)
}

func TestMirrorsHaveTheirTurns(t *testing.T) {
	want := random(3 << 20)
	missing, _ := serve(t, func(w http.ResponseWriter, _ *http.Request, _ int) { http.Error(w, "no", http.StatusNotFound) })
	failing, failed := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) { cut(w, r, random(4<<20), `"a"`, 100) })
	good, _ := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) { file(w, r, want, `"a"`) })
	d := newDisk(t)
	res, err := newClient(t, func(o *Options) { o.Attempts = 3 }).Run(t.Context(), d.job(missing.URL, failing.URL, good.URL))
	require.NoError(t, err)
	require.Equal(t, 2, res.Mirror)
	require.Equal(t, 3, failed.len())
	d.has(want)

	_, err = newClient(t, func(o *Options) { o.Attempts = 3 }).Run(t.Context(), newDisk(t).job(missing.URL, failing.URL))
	var all *Failed
	require.ErrorAs(t, err, &all)
	require.Equal(t, NotFound, all.Errors[0].Kind)
	require.Equal(t, Truncated, all.Errors[1].Kind)
	require.Equal(t, 1, all.Errors[1].Mirror)
	require.ErrorContains(t, err, "none of 2 mirrors gave the file: "+missing.URL)
	require.ErrorContains(t, err, "(3 attempts)")
}

func TestTheCountBeginsAnewWithEveryAdvance(t *testing.T) {
	want := random(12 << 20)
	s, seen := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) { cut(w, r, want, `"a"`, 1<<20) })
	d := newDisk(t)
	_, err := newClient(t, func(o *Options) { o.Attempts, o.Advance = 2, 1<<20 }).Run(t.Context(), d.job(s.URL))
	require.NoError(t, err)
	d.has(want)
	require.Equal(t, 12, seen.len())
	// One that ignores ranges advances once, and never again.
	s, seen = serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		r.Header.Del("Range")
		cut(w, r, want, `"a"`, 5<<20)
	})
	_, err = newClient(t, func(o *Options) { o.Attempts = 3 }).Run(t.Context(), newDisk(t).job(s.URL))
	requireKind(t, Truncated, err)
	require.Equal(t, 3, seen.len())
}

func TestTheLimit(t *testing.T) {
	for title, f := range map[string]func(w http.ResponseWriter, r *http.Request, _ int){
		"announced": func(w http.ResponseWriter, r *http.Request, _ int) { file(w, r, random(1001), "") },
		"in chunks": func(w http.ResponseWriter, _ *http.Request, _ int) {
			_ = http.NewResponseController(w).Flush()
			_, _ = w.Write(random(1001))
		},
	} {
		t.Run(title, func(t *testing.T) {
			s, seen := serve(t, f)
			j := newDisk(t).job(s.URL)
			j.Limit = 1000
			_, err := newClient(t).Run(t.Context(), j)
			requireKind(t, TooLarge, err)
			require.ErrorContains(t, err, "`max_size`")
			require.Equal(t, 1, seen.len())
			j.Limit = 1001
			_, err = newClient(t).Run(t.Context(), j)
			require.NoError(t, err)
		})
	}
}

func TestAFullDiskEndsTheJob(t *testing.T) {
	s, seen := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) { file(w, r, random(8<<20), `"a"`) })
	d := newDisk(t)
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"))
	t.Cleanup(func() {
		d.file.Close()
		require.NoError(t, unix.Unmount(dir, 0))
	})
	d.path = dir + "/image"
	_, err := newClient(t).Run(t.Context(), d.job(s.URL, s.URL+"/2"))
	requireKind(t, NoSpace, err)
	require.ErrorIs(t, err, unix.ENOSPC)
	require.Equal(t, 1, seen.len())
}

func TestWhatTheCallersPartsSayEndsTheJob(t *testing.T) {
	s, _ := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) { file(w, r, random(8<<20), `"a"`) })
	own := errors.New("the pool is gone")
	j := newDisk(t).job(s.URL, s.URL)
	j.Open = func(int64) (*os.File, error) { return nil, own }
	_, err := newClient(t).Run(t.Context(), j)
	requireKind(t, LocalIO, err)
	require.ErrorIs(t, err, own)
	j = newDisk(t).job(s.URL, s.URL)
	j.Onto = func() ([]io.Writer, error) { return nil, own }
	_, err = newClient(t).Run(t.Context(), j)
	requireKind(t, LocalIO, err)
}

func TestCancelEndsEveryPhase(t *testing.T) {
	for title, f := range map[string]func(w http.ResponseWriter, r *http.Request, n int){
		"before the answer": func(_ http.ResponseWriter, r *http.Request, _ int) { <-r.Context().Done() },
		"in the file": func(w http.ResponseWriter, r *http.Request, _ int) {
			w.Header().Set("Content-Length", "100000")
			_, _ = w.Write(random(50000))
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		},
		"between attempts": func(w http.ResponseWriter, _ *http.Request, _ int) { w.WriteHeader(http.StatusBadGateway) },
	} {
		t.Run(title, func(t *testing.T) {
			s, _ := serve(t, f)
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(100*time.Millisecond, cancel)
			began := time.Now()
			_, err := newClient(t, func(o *Options) { o.BackoffMin, o.BackoffMax = time.Minute, time.Minute }).Run(ctx, newDisk(t).job(s.URL, s.URL+"/2"))
			requireKind(t, Canceled, err)
			require.ErrorIs(t, err, context.Canceled)
			require.Less(t, time.Since(began), 5*time.Second)
		})
	}
}

func TestSmallFiles(t *testing.T) {
	s, _ := serve(t, func(w http.ResponseWriter, r *http.Request, n int) {
		switch {
		case r.URL.Path == "/none":
			http.NotFound(w, r)
		case n == 1:
			cut(w, r, []byte("sums"), "", 2)
		default:
			file(w, r, []byte("sums"), "")
		}
	})
	c := newClient(t)
	got, err := c.Small(t.Context(), s.URL+"/sums", 4)
	require.NoError(t, err)
	require.Equal(t, "sums", string(got))
	_, err = c.Small(t.Context(), s.URL+"/sums?secret", 3)
	requireKind(t, TooLarge, err)
	require.NotContains(t, err.Error(), "secret")
	_, err = c.Small(t.Context(), s.URL+"/none", 3)
	requireKind(t, NotFound, err)
	_, err = c.Small(t.Context(), "ftp://x/y", 3)
	requireKind(t, BadURL, err)
}

func TestProgressIsToldAtMostFourTimesASecond(t *testing.T) {
	s, _ := serve(t, func(w http.ResponseWriter, _ *http.Request, _ int) {
		w.Header().Set("Content-Length", "1500000")
		for range 15 {
			_, _ = w.Write(random(100_000))
			_ = http.NewResponseController(w).Flush()
			time.Sleep(100 * time.Millisecond)
		}
	})
	d := newDisk(t)
	_, err := newClient(t).Run(t.Context(), d.job(s.URL))
	require.NoError(t, err)
	var receiving []Progress
	for _, p := range d.all {
		if p.Phase == Receiving {
			receiving = append(receiving, p)
		}
	}
	require.LessOrEqual(t, len(receiving), 8)
	require.GreaterOrEqual(t, len(receiving), 4)
	late := receiving[len(receiving)-1]
	require.InDelta(t, 1e6, late.Rate, 0.5e6)
	require.LessOrEqual(t, late.ETA, 2*time.Second)
	require.EqualValues(t, 1500000, late.Total)
	require.False(t, strings.Contains(fmt.Sprint(late.Phase), " "))
}
