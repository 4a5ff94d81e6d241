//go:build integration

package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/qemutest"
)

// TestPageImages: a person uploads an image, downloads one, is told why another can't be had,
// and puts them into a drive.
func TestPageImages(t *testing.T) {
	r := newRig(t)
	files := filepath.Join(r.dir, "www")
	require.NoError(t, os.Mkdir(files, 0o755))
	from := newSource(t, files)
	qemutest.Disc(t, files, "WEB")
	largeDisc(t, files, "SLOW", 8<<20)
	upload := qemutest.Disc(t, r.dir, "MYDISC")
	vm := r.vm("vm1", qemutest.SATA.With("")...)
	guest := vm.Guest(t)
	r.extra = "[library]\nprivate_targets = [\"127.0.0.1\"]"
	r.start("")
	r.ready()
	p := openPage(r, "#/vm/vm1")

	t.Log("an upload in the dialog is chosen when it is ready")
	p.press("Insert a disc into vm1 cd0")
	p.do(chromedp.Click("//dialog//summary[starts-with(text(), 'Add an image')]"))
	p.do(chromedp.SetUploadFiles(chromedp.CSS("dialog input[type=file]"), []string{upload}))
	p.press("Upload")
	p.shows("dialog .pick", "mydisc", "label MYDISC", "not bootable")
	p.until("document.querySelector('dialog .pick input').checked", pageLimit)
	p.press("Insert")
	p.shows(".drive", "MYDISC", "The disc is in.")
	require.Equal(t, "MYDISC", guest.Volume())

	t.Log("what a drive has is not removed")
	p.do(chromedp.Navigate(p.origin + "/#/images"))
	p.shows("table", "mydisc", "ready", "vm1/cd0")
	p.press("Remove mydisc")
	p.press("Remove")
	p.shows("dialog [role=alert]", "vm1/cd0", "Next:")
	p.press("Cancel")

	t.Log("a file is dropped, and its name is what the library takes")
	p.press("Add an image…")
	p.js("(() => { const d = new DataTransfer(); d.items.add(new File(['no disc at all'], 'My Broken <i>Disc</i>.ISO')); " +
		"for (const type of ['dragover', 'drop']) document.querySelector('.drop').dispatchEvent(new DragEvent(type, {bubbles: true, cancelable: true, dataTransfer: d})); })()")
	p.shows("dialog .drop", "My Broken <i>Disc", ".ISO, 14 B")
	require.Equal(t, "my-broken-i-disc-i", eval[string](p, "document.querySelector('dialog .addimage input[type=text]').value"))
	p.press("Upload")
	p.shows("dialog [role=alert]", "Next:")
	p.press("Close")

	t.Log("a download that fails: the cause and the remedy")
	p.press("Add an image…")
	p.press("From a URL")
	p.do(chromedp.SendKeys(chromedp.CSS("dialog input[type=url]"), from.URL+"/nothing.iso"))
	p.press("Download")
	p.shows("dialog .note.bad", "nothing failed:", "404", "Next:")
	p.press("Close")
	p.shows("tr", "nothing", "failed", "404", "Next:")
	p.saveAll("images")
	qemutest.Disc(t, files, "nothing")
	p.press("Retry nothing")
	p.shows("tr", "nothing", "ready")

	t.Log("a slow one shows how far it is, here and among the operations")
	p.press("Add an image…")
	p.press("From a URL")
	p.do(chromedp.SendKeys(chromedp.CSS("dialog input[type=url]"), from.URL+"/slow/SLOW.iso"))
	p.press("Download")
	p.shows("dialog .note.busy", "slow: downloading", "MiB of 8", "/s")
	p.press("Close")
	p.shows("tr", "slow", "downloading", "MiB of 8")
	p.do(chromedp.Navigate(p.origin + "/#/operations"))
	p.shows("tr", "add", "image:", "slow", "downloading")
	from.hurry()
	p.shows("tr", "add", "slow", "done")
	p.saveAll("operations")

	t.Log("what others download appears, too")
	p.do(chromedp.Navigate(p.origin + "/#/images"))
	r.must("image", "add", "others", from.URL+"/WEB.iso")
	p.shows("tr", "others", "ready", "label WEB")

	t.Log("pin, verify, remove")
	p.do(chromedp.Navigate(p.origin + "/#/images"))
	p.press("Pin slow")
	p.shows("tr", "slow", "pinned")
	p.press("Verify slow")
	p.shows("tr", "slow", "It was read")
	p.press("Remove slow")
	p.press("Remove")
	p.until("!document.querySelector('dialog') && !document.querySelector('table').innerText.includes('slow')", pageLimit)
	require.NotContains(t, r.must("image", "ls"), "slow")
	p.do(chromedp.Navigate(p.origin + "/#/events"))
	p.shows("table", "image added", "image failed", "loaded")
	p.saveAll("events")
	p.quiet()
}

// TestPageByKeyboard: a disc is inserted without a mouse, the focus comes back, and every
// control has a name.
func TestPageByKeyboard(t *testing.T) {
	r := newRig(t)
	vm := r.vm("vm1", qemutest.SATA.With("")...)
	guest := vm.Guest(t)
	r.start("")
	r.ready()
	for _, name := range []string{"alpha", "beta"} {
		r.must("image", "add", name, r.disc(name))
	}
	p := openPage(r, "")
	p.shows(".machine", "vm1", "empty")
	p.named("machines")
	p.tabTo("document.activeElement.textContent === 'vm1'")
	p.do(chromedp.KeyEvent(kb.Enter))
	p.shows(".drive", "No disc")
	p.named("a machine")
	p.tabTo("document.activeElement.textContent === 'Insert…'")
	p.do(chromedp.KeyEvent(kb.Enter))
	p.shows("dialog", "alpha", "beta")
	p.named("the dialog")
	require.True(t, eval[bool](p, "document.activeElement.type === 'search'"), "the dialog begins with the search")
	p.saveAll("dialog")
	p.do(chromedp.KeyEvent("bet"))
	p.until("document.querySelectorAll('dialog .pick input').length === 1", pageLimit)
	p.tabTo("document.activeElement.name === 'image'")
	p.do(chromedp.KeyEvent(" "), chromedp.KeyEvent(kb.Enter))
	p.shows(".drive", "beta", "The disc is in.")
	p.until("!document.querySelector('dialog')", pageLimit)
	require.Equal(t, "beta", guest.Volume())
	require.Equal(t, "drive-vm1/cd0", eval[string](p, "document.activeElement.id"), "Insert has gone; the focus is where it was")
	p.until("document.getElementById('said').textContent.includes('The disc is in.')", time.Second)

	t.Log("a dialog that is left by Escape gives the focus back")
	p.tabTo("document.activeElement.textContent === 'Change…'")
	p.do(chromedp.KeyEvent(kb.Enter))
	p.until("document.querySelector('dialog')", pageLimit)
	p.do(chromedp.KeyEvent(kb.Escape))
	p.until("!document.querySelector('dialog') && document.activeElement.textContent === 'Change…'", pageLimit)

	t.Log("what didn't change isn't drawn anew: focus, an open dialog and what was typed stay")
	p.press("Change the disc of vm1 cd0")
	p.do(chromedp.SendKeys(chromedp.CSS("dialog input[type=search]"), "alp"))
	p.js("document.querySelector('dialog .pick input').mine = document.querySelector('.drive h3').mine = document.activeElement.mine = true")
	r.must("eject", "vm1")
	r.must("insert", "vm1", "image:alpha")
	r.must("image", "add", "alpaca", r.disc("alpaca"))
	p.shows(".drive", "alpha", "loaded")
	p.shows("dialog .pick", "alpaca")
	pictures := p.asked("/screenshot")
	time.Sleep(6 * time.Second) // a poll
	require.Equal(t, pictures, p.asked("/screenshot"), "nobody sees the list of machines now")
	require.True(t, eval[bool](p, "document.activeElement.mine && document.activeElement.value === 'alp'"))
	require.True(t, eval[bool](p, "[...document.querySelectorAll('dialog .pick input')].some((e) => e.mine) && document.querySelector('.drive h3').mine"))
	p.do(chromedp.KeyEvent(kb.Escape))
	for i, hash := range []string{"#/", "#/images", "#/operations", "#/events", "#/vm/vm1/about"} {
		p.do(chromedp.Navigate(p.origin + "/" + hash))
		p.shows("h1")
		p.named(fmt.Sprintf("view %d", i))
	}
	p.quiet()
}
