package main

import (
	"fmt"
	"io"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"github.com/trayd/trayd/internal/wire"
)

func (c *cli) tokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "token", Short: "Make, list and revoke tokens for those who come over TLS",
		Long: `A token lets somebody in who doesn't come by the unix socket: another host's trayctl, the page
over TLS, a program. Only root makes tokens. What is kept of one doesn't let anybody in.`,
		Example: "  trayctl token create ci --role change --expires 720h > ci.token\n  trayctl token ls\n  trayctl token revoke ci",
	}
	cmd.AddCommand(c.tokenCreateCommand(), c.tokenListCommand(), c.tokenRevokeCommand())
	return cmd
}

func (c *cli) tokenCreateCommand() *cobra.Command {
	var body wire.TokenRequest
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Make a token, and print it once", Args: cobra.ExactArgs(1),
		Example: "  trayctl token create grafana\n  trayctl token create ci --role change --expires 720h > ci.token",
		RunE: ran(func(cmd *cobra.Command, args []string) error {
			body.Name = args[0]
			var t wire.NewToken
			if err := c.client.do(cmd.Context(), "POST", "/v1/tokens", body, &t); err != nil {
				return err
			}
			if c.output != "json" {
				until := "for ever"
				if !t.Expires.IsZero() {
					until = "until " + t.Expires.Local().Format("2006-01-02 15:04")
				}
				fmt.Fprintf(c.stderr, "token %s: role %s, %s; it is not shown again\n", t.Name, t.Role, until)
			}
			return c.print(t, func(w io.Writer) { fmt.Fprintln(w, t.Secret) })
		}),
	}
	cmd.Flags().StringVar(&body.Role, "role", "view", "what it may do: view, change or admin")
	cmd.Flags().StringVar(&body.Expires, "expires", "", "how long it counts: a duration such as 720h, or never (default 90 days)")
	must(cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{"view", "change", "admin"}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func (c *cli) tokenListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List the tokens", Args: cobra.NoArgs, Example: "  trayctl token ls\n  trayctl token ls -o json",
		RunE: ran(func(cmd *cobra.Command, _ []string) error {
			var all []wire.Token
			if err := c.client.do(cmd.Context(), "GET", "/v1/tokens", nil, &all); err != nil {
				return err
			}
			return c.print(all, func(w io.Writer) {
				row(w, "NAME", "ROLE", "ID", "CREATED", "EXPIRES", "USED", "BY")
				for _, t := range all {
					expires := "never"
					if !t.Expires.IsZero() {
						expires = t.Expires.Local().Format(time.DateOnly)
						if time.Now().After(t.Expires) {
							expires += " (over)"
						}
					}
					used := ""
					if !t.Used.IsZero() {
						used = t.Used.Local().Format("2006-01-02 15:04")
					}
					row(w, t.Name, t.Role, t.ID, t.Created.Local().Format(time.DateOnly), expires, used, t.By)
				}
			})
		}),
	}
}

func (c *cli) tokenRevokeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "revoke NAME", Short: "Revoke a token, by its name or id; its sessions end with it", Args: cobra.ExactArgs(1), Example: "  trayctl token revoke ci",
		RunE: ran(func(cmd *cobra.Command, args []string) error {
			if err := c.client.do(cmd.Context(), "DELETE", "/v1/tokens/"+url.PathEscape(args[0]), nil, nil); err != nil {
				return err
			}
			fmt.Fprintf(c.stderr, "token %s is revoked\n", args[0])
			return nil
		}),
	}
}
