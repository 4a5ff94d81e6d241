package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/internal/simulated"
	"github.com/trayd/trayd/qmp"
	"github.com/trayd/trayd/qmp/qmptest"
	"github.com/trayd/trayd/state"
)

// fake is a simulated machine whose drive is what drive says, for what a real QEMU doesn't do on
// demand. It listens as machine "vm" of the rig.
func (r *rig) fake(drive *atomic.Value) *qmptest.Server {
	r.t.Helper()
	srv := simulated.New(r.t, json.RawMessage(`[]`)).Server
	srv.Handle("query-block", func(q *qmptest.Request) { q.Return(json.RawMessage(drive.Load().(string))) })
	require.NoError(r.t, os.Symlink(srv.Path(), r.dir+"/run/vm.qmp"))
	r.t.Cleanup(r.end) // before the server goes
	return srv
}

const (
	emptyDrive  = `[{"device":"","qdev":"cd0","removable":true,"locked":false,"tray_open":false}]`
	loadedDrive = `[{"device":"","qdev":"cd0","removable":true,"locked":false,"tray_open":false,
		"inserted":{"node-name":"trayd-test-old","file":"/dev/fdset/0","drv":"raw","ro":true}}]`
)

// TestFloodOfEvents: when events are lost in a flood, QEMU is asked.
func TestFloodOfEvents(t *testing.T) {
	r := newRig(t)
	var drive atomic.Value
	drive.Store(loadedDrive)
	srv := r.fake(&drive)
	j, err := state.Open(filepath.Join(r.dir, "state", "state.journal"), nil)
	require.NoError(t, err)
	rec := recordWith(oldNode)
	rec.Process = lookUp(os.Getpid(), bootID()) // the fake is this process
	require.NoError(t, j.Put(recordKey("vm", "cd0"), rec))
	r.startOn(j)
	r.settled()
	require.Equal(t, oldFile, r.drive("vm").Medium.Name)

	drive.Store(emptyDrive)
	// With one processor nobody follows the events while they are being read, so that
	// some are lost for certain: that of the tray, say, which isn't even among these.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	srv.Write(strings.Repeat(`{"event":"BLOCK_IO_ERROR","data":{"device":""},"timestamp":{"seconds":1,"microseconds":2}}`+"\r\n", 5000))
	r.event(EventReleased)
	require.Equal(t, StateEmpty, r.drive("vm").State)
	require.Empty(t, r.agent.Records())
}

// TestOnDemandIsQuiet: a machine that nobody asks about is left alone.
func TestOnDemandIsQuiet(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Attach = OnDemand })
	var drive atomic.Value
	drive.Store(emptyDrive)
	srv := r.fake(&drive)
	r.start()
	time.Sleep(300 * time.Millisecond)
	connects := 0
	for _, q := range srv.Requests() {
		if q.Command == "qmp_capabilities" {
			connects++
		}
	}
	require.LessOrEqual(t, connects, 2)
}

// TestSilentMonitor: a QEMU that stops answering is told of as such, and the others are
// served.
func TestSilentMonitor(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Command = 200 * time.Millisecond })
	var drive atomic.Value
	drive.Store(emptyDrive)
	srv := r.fake(&drive)
	r.start()
	r.within("the sweep to be over", func() bool {
		return strings.Contains(strings.Join(srv.Commands(), " "), "query-named-block-nodes")
	})
	srv.Handle("query-block", func(*qmptest.Request) {})
	err := r.refused(Unreachable, Insert, "vm", r.disc("DISC_A"))
	require.ErrorContains(t, err, "doesn't answer")
	st, e := r.agent.VM(context.Background(), "vm")
	require.NoError(t, e)
	require.False(t, st.Answered)
	require.Contains(t, st.Reason, "doesn't answer")
	require.Equal(t, StateUnknown, st.Drives[0].State)
	srv.Handle("query-block", func(q *qmptest.Request) { q.Return(json.RawMessage(emptyDrive)) })
	srv.Hangup()
	r.event(EventVMLost)
	r.event(EventVMAttached)
	r.within("an answer", func() bool { st, _ := r.agent.VM(context.Background(), "vm"); return st.Answered })
}

// TestGarbage: what is no monitor ends the connection and nothing else.
func TestGarbage(t *testing.T) {
	r := newRig(t)
	var drive atomic.Value
	drive.Store(emptyDrive)
	srv := r.fake(&drive)
	r.start()
	r.event(EventVMAttached)
	srv.Write("this is no JSON\r\n")
	r.event(EventVMLost)
	r.event(EventVMAttached)
	require.Equal(t, StateEmpty, r.drive("vm").State)
}

// TestRestartAsksLittle: of a drive that is as its record says, QEMU is asked once what is in
// before trayd is ready, and not what kind of drive it is, which the record knows. One of
// another process, or without our disc in it, is asked.
func TestRestartAsksLittle(t *testing.T) {
	self := lookUp(os.Getpid(), bootID()) // the fake is this process
	for name, row := range map[string]struct {
		drive string
		edit  func(*Record)
		bus   blockdev.Bus
		asked int
	}{
		"as recorded":                    {loadedDrive, func(*Record) {}, blockdev.BusSCSI, 0},
		"another process":                {loadedDrive, func(rec *Record) { rec.Process.Start = "another" }, blockdev.BusSATA, 3},
		"no disc of ours":                {emptyDrive, func(*Record) {}, blockdev.BusSATA, 3},
		"a record of an earlier version": {loadedDrive, func(rec *Record) { rec.Model, rec.Bus = "", "" }, blockdev.BusSATA, 3},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			var drive atomic.Value
			drive.Store(row.drive)
			srv := r.fake(&drive)
			j, err := state.Open(filepath.Join(r.dir, "state", "state.journal"), nil)
			require.NoError(t, err)
			rec := recordWith(oldNode)
			// Not what the fake says when it is asked, so that it shows whether it was.
			rec.Process, rec.Model, rec.Bus = self, "scsi-cd", blockdev.BusSCSI
			row.edit(&rec)
			require.NoError(t, j.Put(recordKey("vm", "cd0"), rec))
			r.startOn(j)
			if row.asked == 0 {
				before, _, _ := strings.Cut(strings.Join(srv.Commands(), " "), " query-fdsets") // with which the sweep begins
				require.Equal(t, "query-block", before)
			}
			require.Equal(t, string(row.bus), r.drive("vm").Bus)
			srv.Wait("query-qmp-schema", 1) // the sweep has begun, and has identified whatever it wants to
			require.Equal(t, row.asked, strings.Count(strings.Join(srv.Commands(), " "), "qom-get"))
		})
	}
}

// TestForceMeetsReset: a reset closes the tray that was opened by force, before the disc is out.
func TestForceMeetsReset(t *testing.T) {
	const opened = `"tray_open":true`
	for name, row := range map[string]struct {
		resets int32
		ok     bool
	}{
		"that is over soon":    {forceTries - 1, true},
		"that comes each time": {forceTries, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			var (
				drive atomic.Value
				opens atomic.Int32
			)
			drive.Store(loadedDrive)
			srv := r.fake(&drive)
			srv.Handle("blockdev-open-tray", func(q *qmptest.Request) {
				if opens.Add(1) > row.resets {
					drive.Store(strings.Replace(loadedDrive, `"tray_open":false`, opened, 1))
				}
				q.Return(struct{}{})
			})
			srv.Handle("blockdev-remove-medium", func(q *qmptest.Request) {
				drive.Store(strings.Replace(emptyDrive, `"tray_open":false`, opened, 1))
				q.Return(struct{}{})
			})
			srv.Handle("blockdev-close-tray", func(q *qmptest.Request) {
				drive.Store(strings.Replace(drive.Load().(string), opened, `"tray_open":false`, 1))
				q.Return(struct{}{})
			})
			srv.Handle("blockdev-del", func(q *qmptest.Request) { q.Return(struct{}{}) })
			r.start()
			if row.ok {
				r.done(Eject, "vm", "", force)
				require.Equal(t, row.resets+1, opens.Load())
				require.Equal(t, StateEmpty, r.drive("vm").State)
				return
			}
			err := r.refused(DriveLocked, Eject, "vm", "", force)
			require.ErrorContains(t, err, "opened by force 5 times and was closed again each time")
			var refusal *Error
			require.ErrorAs(t, err, &refusal)
			require.NotContains(t, refusal.Next, "--force", "that was forced")
			require.EqualValues(t, forceTries, opens.Load())
			require.Equal(t, StateLoaded, r.drive("vm").State)
		})
	}
}

// TestWaitingIsTold: also of a guest that has let go for a moment, and holds the door again.
func TestWaitingIsTold(t *testing.T) {
	r := newRig(t)
	var drive atomic.Value
	locked := strings.Replace(loadedDrive, `"locked":false`, `"locked":true`, 1)
	drive.Store(locked)
	srv := r.fake(&drive)
	var opens int // by one command at a time
	srv.Handle("blockdev-open-tray", func(q *qmptest.Request) {
		if opens++; opens == 1 {
			drive.Store(loadedDrive)
		} else {
			drive.Store(locked)
		}
		q.Return(struct{}{})
	})
	r.start()
	o := r.begin(Eject, "vm", "")
	require.Contains(t, r.event(EventWaiting).Detail, "waiting for the guest")
	_, err := r.agent.Cancel(o.VM, o.Drive, "test")
	require.NoError(t, err)
	<-o.done
}

// TestLetsGoAtOnce: a guest locks its door after it was looked at, and unlocks it as soon as QEMU
// has passed the request on. It ejects when the new disc is in already, which stays in.
func TestLetsGoAtOnce(t *testing.T) {
	r := newRig(t)
	var drive atomic.Value
	drive.Store(loadedDrive)
	srv := r.fake(&drive)
	in := func(node string, open bool) {
		st := strings.Replace(loadedDrive, oldNode, node, 1)
		drive.Store(strings.Replace(st, `"tray_open":false`, fmt.Sprintf(`"tray_open":%t`, open), 1))
	}
	var (
		tries  atomic.Int32
		closed = make(chan struct{}, 1)
	)
	srv.Handle("query-qmp-schema", func(q *qmptest.Request) { q.Return(json.RawMessage(simulated.Schema)) })
	srv.Handle("blockdev-add", func(q *qmptest.Request) { q.Return(struct{}{}) })
	srv.Handle("blockdev-del", func(q *qmptest.Request) { q.Return(struct{}{}) })
	srv.Handle("blockdev-change-medium", func(q *qmptest.Request) {
		if tries.Add(1) == 1 {
			q.Error(qmp.ClassGeneric, "Device is locked and force was not specified, wait for tray to open and try again")
			return
		}
		var durable Record // trayd may die from here on
		if ok, err := r.journal.Get(recordKey("vm", "cd0"), &durable); err != nil || !ok || durable.Change == nil || !durable.Change.Asked {
			t.Errorf("it isn't written down that the guest may have been asked: %+v, %v", durable, err)
		}
		var args struct{ Filename string }
		q.Decode(&args)
		in(regexp.MustCompile(`trayd-\w+-\w+`).FindString(args.Filename), false)
		q.Return(struct{}{})
	})
	r.start()
	o := r.begin(Replace, "vm", r.disc("DISC_A"))
	outcome, err := r.finish(o)
	require.NoError(t, err)
	require.Equal(t, Done, outcome.Result)
	require.EqualValues(t, 2, tries.Load())

	node := r.record().Loaded.Node
	srv.Handle("blockdev-close-tray", func(q *qmptest.Request) {
		drive.Store(strings.Replace(drive.Load().(string), `"tray_open":true`, `"tray_open":false`, 1))
		q.Return(struct{}{})
		closed <- struct{}{}
	})
	srv.Handle("blockdev-remove-medium", func(q *qmptest.Request) {
		drive.Store(strings.Replace(emptyDrive, `"tray_open":false`, `"tray_open":true`, 1))
		q.Return(struct{}{})
	})
	in(node, true)
	srv.Write(`{"event":"DEVICE_TRAY_MOVED","data":{"device":"","id":"cd0","tray-open":true},"timestamp":{"seconds":1,"microseconds":2}}` + "\r\n")
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		require.FailNow(t, "the tray stays open")
	}
	r.settled()
	require.NotNil(t, r.record().Loaded, "the guest's eject was taken for its own wish")
	require.Equal(t, node, r.record().Loaded.Node)
	require.Equal(t, StateLoaded, r.drive("vm").State)
}
