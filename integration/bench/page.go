package main

import (
	"bufio"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
)

// pageLoads is how often the page is loaded.
const pageLoads = 20

// page measures the page in a real browser: what it brings over, when there is first something
// to read and when a machine's disc, and whom it asks.
func (b *bench) page(ctx context.Context) error {
	fmt.Println("the page in Chromium ...")
	dir := filepath.Join(b.dir, "page")
	if err := b.machines(dir, "vm", 10); err != nil {
		return err
	}
	d, err := b.startTrayd(dir)
	if err != nil {
		return err
	}
	defer d.Stop()
	if err := d.insert("vm0", b.discs[0]); err != nil {
		return err
	}
	ui := exec.Command(filepath.Join(b.bin, "trayctl"), "--socket", d.Socket(), "ui", "--print")
	ui.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	stdout, err := ui.StdoutPipe()
	if err != nil {
		return err
	}
	if err := ui.Start(); err != nil {
		return err
	}
	defer func() {
		_ = ui.Process.Signal(syscall.SIGTERM)
		_ = ui.Wait()
	}()
	address, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		return err
	}
	return b.load(ctx, strings.TrimSpace(address))
}

// load loads the page, and adds its figures.
func (b *bench) load(ctx context.Context, address string) error {
	profile := filepath.Join(b.dir, "chromium")
	options := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath("chromium"), chromedp.UserDataDir(profile), chromedp.Env("HOME=" + b.dir), chromedp.WindowSize(1280, 900),
		chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.Headless, chromedp.Flag("headless", "new"),
	}
	for _, flag := range []string{"disable-quic", "disable-background-networking", "disable-component-update", "disable-sync", "disable-dev-shm-usage"} {
		options = append(options, chromedp.Flag(flag, true))
	}
	if err := os.MkdirAll(profile, 0o700); err != nil {
		return err
	}
	ctx, end := chromedp.NewExecAllocator(ctx, options...)
	defer end()
	var (
		mu      sync.Mutex // guards below
		bytes   int64
		strange []string
	)
	at, err := url.Parse(address)
	if err != nil {
		return err
	}
	ctx, closed := chromedp.NewContext(ctx, chromedp.WithListener(func(event any) {
		mu.Lock()
		defer mu.Unlock()
		switch e := event.(type) {
		case *network.EventRequestWillBeSent:
			if u, err := url.Parse(e.Request.URL); err != nil || u.Host != at.Host && u.Scheme != "blob" && u.Scheme != "data" {
				strange = append(strange, e.Request.URL)
			}
		case *network.EventLoadingFinished:
			bytes += int64(e.EncodedDataLength)
		}
	}))
	defer closed()
	if err := chromedp.Do(ctx); err != nil {
		return fmt.Errorf("chromium (Debian: chromium): %w", err)
	}
	if _, err := chromedp.Call(ctx, network.Enable, network.EnableParams{}); err != nil {
		return err
	}
	if err := chromedp.Do(ctx, chromedp.Navigate(address+"#/vm/vm0"), chromedp.WaitVisible(".drive")); err != nil {
		return err
	}
	mu.Lock()
	first := bytes
	mu.Unlock()
	var paint, whole []time.Duration
	for range pageLoads {
		if err := chromedp.Do(ctx, chromedp.Reload(), chromedp.WaitVisible(".drive")); err != nil {
			return err
		}
		times, err := chromedp.Run(ctx, chromedp.Evaluate[[]float64]("[performance.getEntriesByName('first-contentful-paint')[0].startTime, performance.now()]"))
		if err != nil {
			return err
		}
		paint = append(paint, time.Duration(times[0]*float64(time.Millisecond)))
		whole = append(whole, time.Duration(times[1]*float64(time.Millisecond)))
	}
	slices.Sort(paint)
	slices.Sort(whole)
	mu.Lock()
	defer mu.Unlock()
	b.add("the page, without the console", fmt.Sprintf("%d kB", first/1000), "-", "-", "below 300 kB")
	b.add("the page: first paint in Chromium", spread(paint), "-", "-", "-")
	b.add("the page: a machine's drives are there", spread(whole), "-", "-", "below 1 s")
	b.add("the page: requests to anywhere else", fmt.Sprint(len(strange)), "-", "-", "none")
	return ctx.Err()
}
