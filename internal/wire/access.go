package wire

import "time"

// Token is a bearer token, without its secret.
type Token struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Role    string    `json:"role"` // view, change or admin
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"` // absent: never
	Used    time.Time `json:"used,omitzero"`    // last, since trayd was started
	By      string    `json:"by,omitempty"`     // who made it
}

// NewToken is a token with its secret, which is shown once.
type NewToken struct {
	Token
	Secret string `json:"secret"`
}

// TokenRequest is the body of POST /v1/tokens.
type TokenRequest struct {
	Name string `json:"name"`
	Role string `json:"role"`
	// Expires is a Go duration from now; "" is 90 days, "never" what it says.
	Expires string `json:"expires,omitempty"`
}

// Session is who the caller is to trayd.
type Session struct {
	Name    string `json:"name"`
	Role    string `json:"role"` // view, change or admin
	Host    string `json:"host"` // where trayd runs
	Version string `json:"version"`
}

// SessionRequest is the body of POST /v1/session.
type SessionRequest struct {
	Token string `json:"token"`
}

// UI is the answer to POST /v1/ui: a way to the page for one browser.
type UI struct {
	ID string `json:"id"` // what GET /v1/ui/{id} connects to
	// Token is good for one request for the page, `/?token=...`, within two minutes.
	Token string `json:"token"`
}
