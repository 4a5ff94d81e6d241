package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/trayd/trayd/internal/wire"
)

// closeLimit is how long the end of the way to the page may take to be told.
const closeLimit = 2 * time.Second

func (c *cli) uiCommand() *cobra.Command {
	var listen string
	var show bool
	cmd := &cobra.Command{
		Use: "ui", Short: "Open the page in a browser", Args: cobra.NoArgs,
		Long: `Opens trayd's page in a browser. It is reached by a port on loopback that only processes of
the same user get through, and by a token in its address that counts once, within two minutes.
The page may do what you may do, until this command ends (Ctrl-C).

From another computer: ssh -L 8440:127.0.0.1:8440 HOST trayctl ui --print --listen 127.0.0.1:8440`,
		Example: "  trayctl ui\n  trayctl ui --print\n  trayctl ui --host https://edge7:8440 --token-file ~/.edge7.token",
		RunE: ran(func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
			defer stop()
			return c.ui(ctx, listen, show)
		}),
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:0", "where the browser connects: ADDRESS:PORT on loopback; port 0 is a free one")
	cmd.Flags().BoolVar(&show, "print", false, "print the address, and start no browser")
	return cmd
}

// ui brings browsers to the page until ctx ends.
func (c *cli) ui(ctx context.Context, listen string, show bool) error {
	at, err := loopback(listen)
	if err != nil {
		return usageError{err}
	}
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return fmt.Errorf("--listen %s: %w", listen, err)
	}
	defer l.Close()
	var way wire.UI
	if err := c.client.do(ctx, "POST", "/v1/ui", nil, &way); err != nil {
		return err
	}
	defer func() {
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
		defer cancel()
		_ = c.client.do(bounded, "DELETE", "/v1/ui/"+way.ID, nil, nil) // its sessions end by themselves, too
	}()
	address := fmt.Sprintf("http://%s/?token=%s", l.Addr(), way.Token)
	browser := ""
	if !show {
		browser, _ = exec.LookPath("xdg-open")
	}
	if browser == "" {
		fmt.Fprintln(c.stdout, address)
	} else if err := exec.CommandContext(ctx, browser, address).Start(); err != nil {
		fmt.Fprintln(c.stdout, address)
	}
	fmt.Fprintln(c.stderr, "the page is there until Ctrl-C; its address counts once")

	t := &tunnel{c: c, name: "the page", l: l}
	var work sync.WaitGroup
	defer work.Wait()
	defer l.Close()
	accepted := make(chan net.Conn)
	work.Go(func() { t.accept(ctx, accepted) })
	for {
		select {
		case <-ctx.Done():
			return nil
		case conn, open := <-accepted:
			if !open {
				return fmt.Errorf("no browser can connect to %s any more", l.Addr())
			}
			work.Go(func() {
				if err := c.bring(ctx, conn, way.ID); err != nil && ctx.Err() == nil {
					c.report(ranError{err})
				}
			})
		}
	}
}

// bring carries one connection of a browser's to trayd, until either side ends it.
func (c *cli) bring(ctx context.Context, browser net.Conn, id string) error {
	defer browser.Close()
	conn, err := c.client.dial(ctx)
	if err != nil {
		return &unreachableError{socket: c.client.String(), remote: c.client.tls != nil, err: err}
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close(); browser.Close() })()
	_, err = fmt.Fprintf(conn, "GET /v1/ui/%s HTTP/1.1\r\n%sConnection: Upgrade\r\nUpgrade: trayd-page\r\n\r\n", id, c.client.fields())
	if err != nil {
		return c.client.brokeOff(err)
	}
	r := bufio.NewReader(conn)
	text := textproto.NewReader(r)
	line, err := text.ReadLine()
	if err != nil {
		return c.client.brokeOff(err)
	}
	if !strings.HasPrefix(line, "HTTP/1.1 101") {
		_, err := c.client.answered(line, r)
		return err
	}
	if _, err := text.ReadMIMEHeader(); err != nil {
		return c.client.brokeOff(err)
	}
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = io.Copy(conn, browser) // either end may go at any time
		closeWrite(conn)
	})
	both.Go(func() {
		_, _ = io.Copy(browser, r)
		closeWrite(browser)
	})
	both.Wait()
	return nil
}

// closeWrite ends one direction of a connection.
func closeWrite(c net.Conn) {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		_ = h.CloseWrite() // it may have gone
	}
}
