package agent

import (
	"encoding/json"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/simulated"
	"github.com/trayd/trayd/qmp/qmptest"
)

// TestSlowMachineHarmsNoOther: of a hundred machines one doesn't answer for as long as it
// takes to change all others, each by a client of its own.
func TestSlowMachineHarmsNoOther(t *testing.T) {
	const machines = 100
	r := newRig(t, func(o *Options) { o.Command = 10 * patience }) // the slow one is slow, not silent
	fleet := make([]*simulated.Machine, machines)
	for i := range fleet {
		fleet[i] = simulated.New(t, json.RawMessage(simulated.Schema))
		require.NoError(t, os.Symlink(fleet[i].Path(), fmt.Sprintf("%s/run/vm%d.qmp", r.dir, i)))
	}
	t.Cleanup(r.end) // before the servers go
	discs := []string{r.disc("DISC_A"), r.disc("DISC_B")}
	r.start()
	r.within("all machines to be attached", func() bool { attached, _ := r.agent.Attached(); return attached == machines })

	asked, answer := make(chan struct{}, 1), make(chan struct{})
	fleet[0].Handle("blockdev-change-medium", func(q *qmptest.Request) {
		select {
		case asked <- struct{}{}:
		default: // it asks once more
		}
		select {
		case <-answer:
			q.Error("GenericError", "not today")
		case <-q.Done():
		}
	})
	slow := r.begin(Insert, "vm0", discs[0])
	select {
	case <-asked:
	case <-time.After(patience):
		require.FailNow(t, "the slow machine was never asked")
	}
	others := make([]*Operation, 0, machines-1)
	for _, disc := range discs { // inserted, and changed
		others = others[:0]
		for i := 1; i < machines; i++ {
			others = append(others, r.begin(Replace, fmt.Sprintf("vm%d", i), disc))
		}
		for _, o := range others {
			out, err := r.finish(o)
			require.NoError(t, err)
			require.Equal(t, Done, out.Result)
		}
	}
	require.Nil(t, slow.Progress().Outcome, "it has still to be answered")
	require.NoError(t, slow.Progress().Err)
	close(answer)
	_, err := r.finish(slow)
	r.isError(QEMURefused, err)
	for i := 1; i < machines; i++ {
		r.holds(fmt.Sprintf("vm%d", i), discs[1])
	}
}
