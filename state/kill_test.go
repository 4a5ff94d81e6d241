package state

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// writeForever is the child: four writers put rising numbers, and say each number once it is acknowledged.
func writeForever(path string) {
	j, err := Open(path, &Options{CompactSize: 8 << 10})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			var n int
			key := fmt.Sprint("w", w)
			_, _ = j.Get(key, &n)
			for {
				n++
				if err := j.Put(key, n); err != nil {
					fmt.Println("error", err)
					os.Exit(1)
				}
				mu.Lock()
				fmt.Fprintln(os.Stdout, key, n)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

func TestKilledWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	acknowledged := map[string]int{}
	for range 15 {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), "STATE_TEST_WRITER="+path)
		out, err := child.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, child.Start())
		time.AfterFunc(time.Duration(20+rand.IntN(150))*time.Millisecond, func() { _ = child.Process.Kill() })
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			key, n, ok := strings.Cut(lines.Text(), " ")
			number, err := strconv.Atoi(n)
			if !ok || err != nil {
				require.NotEqual(t, "error", key, lines.Text())
				continue // the last line, cut
			}
			acknowledged[key] = number
		}
		_ = child.Wait()
		j, err := Open(path, nil)
		require.NoError(t, err)
		for key, n := range acknowledged {
			var got int
			_, err := j.Get(key, &got)
			require.NoError(t, err)
			assert.GreaterOrEqual(t, got, n, "%s was acknowledged", key)
		}
		require.NoError(t, j.Close())
	}
	assert.Len(t, acknowledged, 4, "the child worked")
}
