//go:build integration

package integration_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/qemutest"
)

// live is that the page has its event stream.
const live = "document.querySelector('main').getAttribute('aria-busy') === 'false' && !document.querySelector('#banner').innerText"

// choose types a disc's place into the dialog and begins.
func (p *tab) chooseDisc(open, medium, begin string) {
	p.t.Helper()
	p.press(open)
	p.do(chromedp.SendKeys(chromedp.CSS("dialog input[placeholder='/srv/iso/debian.iso']"), medium))
	p.press(begin)
}

// TestPageChangesDiscs: insert, change and eject end in QEMU, by QEMU's word and the guest's.
func TestPageChangesDiscs(t *testing.T) {
	r := newRig(t)
	a, b := r.disc("AAA"), r.disc("BBB")
	vm := r.vm("vm1", qemutest.SATA.With("")...)
	guest := vm.Guest(t)
	r.start("")
	r.ready()
	p := openPage(r, "")
	p.shows(".machine", "vm1", "1 CD drive", "empty")
	p.do(chromedp.Click("//a[text()='vm1']"))
	p.shows(".drive", "cd0", "No disc")

	p.chooseDisc("Insert a disc into vm1 cd0", a, "Insert")
	p.shows(".drive", "AAA", "loaded", "The disc is in.")
	require.Equal(t, "AAA", r.settled("vm1/cd0").Medium.VolumeID)
	require.Equal(t, "AAA", guest.Volume())

	p.chooseDisc("Change the disc of vm1 cd0", b, "Change")
	p.shows(".drive", "BBB", "The disc was changed.")
	require.Equal(t, "BBB", guest.Volume())

	t.Log("what can't be done is said in the dialog, with what to do")
	broken := filepath.Join(r.discs(), "broken.iso")
	require.NoError(t, os.WriteFile(broken, make([]byte, 64<<10), 0o644))
	p.chooseDisc("Change the disc of vm1 cd0", broken, "Change")
	p.shows("dialog [role=alert]", "broken.iso", "Next:")
	p.press("Cancel")
	require.Equal(t, "BBB", guest.Volume())

	p.press("Eject the disc of vm1 cd0")
	p.shows(".drive", "No disc", "The disc is out.")
	require.Equal(t, qemutest.NoMedium, guest.Volume())
	require.Equal(t, agent.StateEmpty, r.settled("vm1/cd0").State)
	p.quiet()
	r.clean(vm, "vm1/cd0")
}

// TestPageShowsTheTruth: what is done elsewhere is on the page within a second, and so is
// that the agent has gone; when it is back, all is as QEMU says.
func TestPageShowsTheTruth(t *testing.T) {
	r := newRig(t)
	a, b := r.disc("AAA"), r.disc("BBB")
	vm := r.vm("vm1", qemutest.SATA.With("")...)
	guest := vm.Guest(t)
	r.start("")
	r.ready()
	p := openPage(r, "#/vm/vm1")
	p.shows(".drive", "No disc")
	p.until(live, pageLimit)

	r.must("insert", "vm1", a)
	t.Log("trayctl's insert after", p.showsWithin(time.Second, ".drive", "AAA", "loaded"))
	guest.Volume()
	require.Empty(t, guest.Eject())
	t.Log("a guest's eject after", p.showsWithin(time.Second, ".drive", "No disc"))

	r.settled("vm1/cd0")
	r.kill()
	t.Log("the agent's end after", p.showsWithin(3*time.Second, "#banner", "Connection lost"))
	p.save("lost")
	require.True(t, eval[bool](p, "document.querySelector('.drive button').disabled"), "nothing can be asked for meanwhile")
	r.start("")
	r.ready()
	r.must("insert", "vm1", b)
	t.Log("back after", p.showsWithin(6*time.Second, ".drive", "BBB", "loaded"))
	p.until(live, time.Second)
	r.must("eject", "vm1")
	p.showsWithin(time.Second, ".drive", "No disc")
	p.quiet()
	r.clean(vm, "vm1/cd0")
}
