//go:build integration

package integration_test

import (
	"fmt"
	"net/url"
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
	p := openPage(r, "#/vm/vm1") // it outlives trayd
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

// TestPageLockedTray: who asks for a disc that a guest holds sees how long it is waited for,
// and may end that in both ways.
func TestPageLockedTray(t *testing.T) {
	r := newRig(t)
	a, b := r.disc("AAA"), r.disc("BBB")
	vm, _ := r.running("vm1", qemutest.IDE.With("")...)
	guest := vm.Guest(t)
	r.extra = "wait = \"2s\""
	r.start("")
	r.ready()
	r.must("insert", "vm1", a)
	require.Equal(t, "AAA", guest.Volume())
	guest.Lock()
	p := openPage(r, "#/vm/vm1")
	p.shows(".drive", "AAA", "locked by the guest")
	p.until(live, pageLimit)

	for _, end := range []string{"Cancel", "Force"} {
		p.press("Change the disc of vm1 cd0")
		p.do(chromedp.SendKeys(chromedp.CSS("dialog input[placeholder='/srv/iso/debian.iso']"), b),
			chromedp.SetValue(chromedp.CSS("dialog select[name=wait]"), "1m"))
		p.press("Change")
		p.until("!document.querySelector('dialog')", pageLimit)
		p.shows(".drive", "waiting for the guest", "The guest holds the drive's door", "gives up in 5")
		at := eval[string](p, "document.querySelector('.countdown span').textContent")
		p.until("document.querySelector('.countdown span').textContent !== "+quoted(at), 2*time.Second)
		require.Equal(t, "AAA", r.driveStatus("vm1/cd0").Medium.VolumeID, "nothing has moved")
		if end == "Cancel" {
			p.saveAll("waiting")
		}
		p.press(end)
		if end == "Cancel" {
			p.shows(".drive", "AAA", "Cancelled: the old disc is still in.")
			require.Equal(t, "AAA", guest.Volume())
		}
	}
	p.shows(".drive", "BBB", "The disc was changed.")
	require.Equal(t, "BBB", guest.Volume())

	t.Log("an eject that gives up says why, and what to do")
	guest.Lock()
	p.shows(".drive", "locked by the guest")
	p.press("Eject the disc of vm1 cd0")
	p.press("Eject")
	p.shows(".drive [role=alert]", "the guest", "Next:", "force")
	require.Equal(t, "BBB", guest.Volume())
	guest.Unlock()
	p.quiet()
	r.clean(vm, "vm1/cd0")
}

// TestPageHostileNames: what others have named is text. A guest or the maker of a disc can
// choose a label, who makes a machine its name, and who has a file its.
func TestPageHostileNames(t *testing.T) {
	r := newRig(t)
	const attack = `<img src=x onerror=owned()>`
	disc := r.disc("evil")
	label := r.labelled(`<IMG SRC=X ONERROR=OWNED()>`, map[string]string{"a": "b"})
	named := filepath.Join(r.discs(), attack+".iso")
	require.NoError(t, os.Rename(disc, named))
	// A name that QEMU's command line can't have, but a file.
	odd := qemutest.Start(t, r.dir, "odd", qemutest.SATA.With("")...)
	require.NoError(t, os.Rename(odd.Socket, filepath.Join(r.dir, "run", attack+".qmp")))
	r.vm("vm1", qemutest.SATA.With("")...)
	r.start("")
	r.ready()
	p := openPage(r, "")
	p.shows(".machine", attack)
	r.must("insert", "vm1", label)
	r.must("insert", attack+"/cd0", named)
	r.must("image", "add", "evil", label)
	p.shows(".machine", "<IMG SRC=X ONERROR=OWNED()>")
	for _, hash := range []string{"#/vm/" + url.PathEscape(attack), "#/vm/" + url.PathEscape(attack) + "/console", "#/vm/" + url.PathEscape(attack) + "/about", "#/operations", "#/events", "#/" + attack, "#/vm/%zz"} {
		p.do(chromedp.Navigate(p.origin + "/" + hash))
		p.shows("h1")
		p.until("!document.querySelector('main img:not([alt])') && !document.querySelector('img[src=x], img[src=X]')", pageLimit)
	}
	p.do(chromedp.Navigate(p.origin + "/#/images"))
	p.shows("table", "<IMG SRC=X ONERROR=OWNED()>")
	p.do(chromedp.Navigate(p.origin + "/#/vm/vm1"))
	p.press("Change the disc of vm1 cd0")
	p.shows("dialog", "label <IMG SRC=X ONERROR=OWNED()>")
	p.until("!document.querySelector('img[src=x], img[src=X]')", pageLimit)
	p.quiet()
}

// TestPageTellsWhyNot: a drive that can't be changed while its machine runs, and a machine
// that doesn't answer, say so, why, and what to do; the others go on.
func TestPageTellsWhyNot(t *testing.T) {
	r := newRig(t)
	r.vm("fixed", "-M", "q35", "-drive", "if=virtio,media=cdrom,readonly=on,format=raw,file="+r.disc("FIXED"))
	frozen := r.vm("frozen", qemutest.SATA.With("")...)
	r.vm("vm1", qemutest.SATA.With("")...)
	r.start("")
	r.ready()
	p := openPage(r, "#/vm/fixed")
	p.shows(".drive", "can't be changed while the machine runs", "virtio", "-device ide-cd")
	p.until("[...document.querySelectorAll('.drive button')].every((b) => b.disabled && b.title)", pageLimit)

	p.do(chromedp.Navigate(p.origin + "/#/"))
	p.shows(".machine", "frozen", "empty")
	frozen.Freeze(t)
	p.shows(".machine", "frozen", "unreachable", "doesn't answer", "Next:", "unknown")
	p.saveAll("unreachable")
	p.chooseFrom("vm1", r.disc("AAA"))
	frozen.Thaw(t)
	p.do(chromedp.Navigate(p.origin + "/#/"))
	p.shows(".machine", "frozen", "empty")
	p.quiet()
}

// chooseFrom inserts a disc into a machine of the list.
func (p *tab) chooseFrom(vm, disc string) {
	p.t.Helper()
	p.do(chromedp.Click(fmt.Sprintf("//a[text()=%q]", vm)))
	p.chooseDisc("Insert a disc into "+vm+" cd0", disc, "Insert")
	p.shows(".drive", "The disc is in.")
}
