package ingest

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// content is bytes that are the same for each seed and compress to nothing shorter.
func content(n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(p)
	return p
}

func target(t *testing.T) *os.File {
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "image"), os.O_RDWR|os.O_CREATE, 0o600)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func sum(h hash.Hash) string { return fmt.Sprintf("%x", h.Sum(nil)) }

func TestEveryByteIsWrittenAndHashed(t *testing.T) {
	for _, size := range []int{0, 1, blockSize - 1, blockSize, blockSize + 1, window, 3*window + 5, 21<<20 + 777} {
		for name, slow := range map[string]func(io.Reader) io.Reader{
			"at once":          func(r io.Reader) io.Reader { return r },
			"in halves":        iotest.HalfReader,
			"end with data":    iotest.DataErrReader,
			"in small pieces":  func(r io.Reader) io.Reader { return &pieces{r: r, n: 1000 + size/100} },
			"nothing at times": func(r io.Reader) io.Reader { return &lazy{r: r} },
		} {
			t.Run(fmt.Sprintf("%d bytes, %s", size, name), func(t *testing.T) {
				want := content(size)
				f := target(t)
				a, b := sha256.New(), md5.New()
				n, err := Copy(t.Context(), f, slow(bytes.NewReader(want)), Options{Limit: NoLimit}, a, b)
				require.NoError(t, err)
				require.EqualValues(t, size, n)
				got, err := os.ReadFile(f.Name())
				require.NoError(t, err)
				require.True(t, bytes.Equal(want, got))
				require.Equal(t, fmt.Sprintf("%x", sha256.Sum256(want)), sum(a))
				require.Equal(t, fmt.Sprintf("%x", md5.Sum(want)), sum(b))
			})
		}
	}
}

// pieces reads at most n bytes at once.
type pieces struct {
	r io.Reader
	n int
}

func (p *pieces) Read(b []byte) (int, error) { return p.r.Read(b[:min(len(b), p.n)]) }

// lazy returns nothing, and no error, every other time.
type lazy struct {
	r  io.Reader
	on bool
}

func (l *lazy) Read(b []byte) (int, error) {
	if l.on = !l.on; l.on {
		return 0, nil
	}
	return l.r.Read(b)
}

func TestWhatBrokeOffGoesOnWithTheSameHash(t *testing.T) {
	want := content(30<<20 + 3)
	f := target(t)
	h := sha256.New()
	var at int64
	random := rand.New(rand.NewPCG(1, 2))
	broken := errors.New("the line is cut")
	for cuts := 0; at < int64(len(want)); cuts++ {
		require.Less(t, cuts, 100)
		upTo := min(int64(len(want)), at+1+random.Int64N(7<<20))
		r := io.Reader(bytes.NewReader(want[at:upTo]))
		if upTo < int64(len(want)) {
			r = io.MultiReader(r, iotest.ErrReader(broken))
		}
		var durable int64
		n, err := Copy(t.Context(), f, r, Options{Offset: at, Limit: NoLimit, Durable: func(end int64) { durable = end }}, h)
		if upTo < int64(len(want)) {
			var e *Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, Read, e.Step)
			require.Equal(t, upTo, e.Offset)
			require.ErrorIs(t, err, broken)
		} else {
			require.NoError(t, err)
		}
		require.Equal(t, upTo-at, n, "what had been read is written")
		at += n
		require.Equal(t, at, durable, "and durable")
	}
	got, err := os.ReadFile(f.Name())
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
	require.Equal(t, fmt.Sprintf("%x", sha256.Sum256(want)), sum(h))

	again := sha256.New()
	require.NoError(t, HashFile(t.Context(), f, int64(len(want)), again))
	require.Equal(t, sum(h), sum(again))
}

func TestNothingIsWrittenBeyondTheLimit(t *testing.T) {
	for _, limit := range []int64{0, 1, blockSize, blockSize + 1, 2*window - 1} {
		for _, more := range []int{0, 1, blockSize} {
			t.Run(fmt.Sprintf("%d and %d more", limit, more), func(t *testing.T) {
				f := target(t)
				n, err := Copy(t.Context(), f, bytes.NewReader(content(int(limit)+more)), Options{Limit: limit})
				if more > 0 {
					require.ErrorIs(t, err, ErrTooLarge)
				} else {
					require.NoError(t, err)
				}
				require.Equal(t, limit, n)
				st, err := f.Stat()
				require.NoError(t, err)
				require.Equal(t, limit, st.Size())
			})
		}
	}
}

func TestCancelEndsACopyWhoseReaderBlocks(t *testing.T) {
	r, w := io.Pipe()
	f := target(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("nobody wants it any more")
	go func() {
		_, _ = w.Write(content(3 * blockSize)) // and then nothing
		time.Sleep(50 * time.Millisecond)
		cancel(why)
	}()
	h := sha256.New()
	n, err := Copy(ctx, f, r, Options{Limit: NoLimit}, h)
	require.ErrorIs(t, err, why)
	require.EqualValues(t, 3*blockSize, n)
	require.Equal(t, fmt.Sprintf("%x", sha256.Sum256(content(3*blockSize))), sum(h))
	require.NoError(t, r.Close()) // what the caller has to do; goleak looks
}

func TestASlowStreamReachesTheDiskInTime(t *testing.T) {
	r, w := io.Pipe()
	f := target(t)
	done := make(chan error, 1)
	go func() {
		_, err := Copy(t.Context(), f, r, Options{Limit: NoLimit})
		done <- err
	}()
	_, err := w.Write([]byte("one"))
	require.NoError(t, err)
	time.Sleep(patience + 50*time.Millisecond)
	_, err = w.Write([]byte("two"))
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		got, err := os.ReadFile(f.Name())
		return err == nil && string(got) == "onetwo"
	}, 5*time.Second, 10*time.Millisecond)
	require.NoError(t, w.Close())
	require.NoError(t, <-done)
}

func TestAFullDiskIsKnownAsOne(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	f, err := os.Create(filepath.Join(dir, "image"))
	require.NoError(t, err)
	defer f.Close()
	n, err := Copy(t.Context(), f, bytes.NewReader(content(20<<20)), Options{Limit: NoLimit}, sha256.New())
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, Write, e.Step)
	require.True(t, IsFull(err), err)
	require.LessOrEqual(t, n, int64(4<<20))
	require.Contains(t, err.Error(), "no space left on device")
}

func TestABlockDeviceIsWrittenWithinItsLimit(t *testing.T) {
	backing := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(backing, make([]byte, 20<<20), 0o600))
	out, err := exec.Command("losetup", "--find", "--show", backing).CombinedOutput()
	require.NoError(t, err, string(out))
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { require.NoError(t, exec.Command("losetup", "-d", device).Run()) })
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()

	want := content(12<<20 + 100)
	n, err := Copy(t.Context(), f, bytes.NewReader(want), Options{Offset: 4096, Limit: int64(len(want))})
	require.NoError(t, err)
	require.EqualValues(t, len(want), n)
	got, err := os.ReadFile(backing)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got[4096:4096+len(want)]))
	require.True(t, bytes.Equal(make([]byte, 1000), got[4096+len(want):][:1000]))

	_, err = Copy(t.Context(), f, bytes.NewReader(content(21<<20)), Options{Limit: NoLimit})
	require.True(t, IsFull(err), "the device's end: %v", err)
}

type failing struct{ after int }

var errHash = errors.New("this hash can't")

func (f *failing) Write(p []byte) (int, error) {
	if f.after -= len(p); f.after < 0 {
		return 0, errHash
	}
	return len(p), nil
}

func TestAHashThatFailsEndsTheCopy(t *testing.T) {
	_, err := Copy(t.Context(), target(t), endless{}, Options{Limit: NoLimit}, sha256.New(), &failing{after: 5 << 20})
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, Hash, e.Step)
	require.ErrorIs(t, err, errHash)
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestAFileThatIsShorterThanItShouldBe(t *testing.T) {
	f := target(t)
	require.NoError(t, f.Truncate(1000))
	err := HashFile(t.Context(), f, 1001, sha256.New())
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.ErrorContains(t, err, "of 1001 bytes only 1000 are there")
	require.NoError(t, HashFile(t.Context(), f, 999, sha256.New()))
}

func TestWhatIsDurableIsToldOnTheWay(t *testing.T) {
	var told []int64
	n, err := Copy(t.Context(), target(t), io.LimitReader(endless{}, 150<<20), Options{Limit: NoLimit, Durable: func(end int64) { told = append(told, end) }})
	require.NoError(t, err)
	require.EqualValues(t, 150<<20, n)
	require.GreaterOrEqual(t, len(told), 3)
	require.IsIncreasing(t, told)
	require.Equal(t, n, told[len(told)-1])
}
