package access

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/trayd/trayd/internal/wire"
)

// Store is where tokens are kept: state.Journal is one.
type Store interface {
	Put(key string, value any) error
	Delete(key string) error
	Range(f func(key string, value json.RawMessage) bool)
}

// Tokens are the bearer tokens that let somebody in who doesn't come by the unix socket. What
// is kept of one is the SHA-256 of its secret, which needs no slower hash: the secret is 256
// random bits.
//
// It may be used by several goroutines.
type Tokens struct {
	store Store

	mu  sync.Mutex // guards all, and that the store follows it
	all map[string]*token
}

// token is one as it is stored.
type token struct {
	wire.Token
	Hash string    `json:"hash"`
	used time.Time // not kept: a look would be a write
}

const (
	tokenPrefix = "trayd_" // so that scanners of leaked secrets know one
	tokenKey    = "token/"
	maxTokens   = 1000
)

// Errors of tokens.
var (
	ErrNoToken      = errors.New("there is no such token")
	ErrTokenExists  = errors.New("there is a token of that name already")
	ErrTooManyToken = fmt.Errorf("there are %d tokens already", maxTokens)
	ErrTokenName    = errors.New("a token's name has 1 to 64 letters, digits, dots, hyphens and underscores")
	// ErrUnknown is a token that isn't one, or isn't any more: which of both isn't told to
	// who shows it.
	ErrUnknown = errors.New("the token is unknown, revoked or expired")
)

var tokenName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// NewTokens reads the tokens that are kept.
func NewTokens(store Store) (*Tokens, error) {
	t := &Tokens{store: store, all: make(map[string]*token)}
	return t, load(store, tokenKey, func(_ string, k *token) { t.all[k.ID] = k })
}

// Create makes a token and returns it with its secret, which is not to be had again. A
// zero expires is never.
func (t *Tokens) Create(name string, role Role, expires time.Time, by string) (wire.NewToken, error) {
	if !tokenName.MatchString(name) {
		return wire.NewToken{}, ErrTokenName
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.all) >= maxTokens {
		return wire.NewToken{}, ErrTooManyToken
	}
	for _, k := range t.all {
		if k.Name == name {
			return wire.NewToken{}, ErrTokenExists
		}
	}
	id, secret := random(5), random(32)
	k := &token{Hash: hash(secret), Token: wire.Token{
		ID: id, Name: name, Role: role.String(), Created: time.Now().UTC().Truncate(time.Second), Expires: expires.UTC().Truncate(time.Second), By: by,
	}}
	if expires.IsZero() {
		k.Expires = time.Time{}
	}
	if err := t.store.Put(tokenKey+id, k); err != nil {
		return wire.NewToken{}, err
	}
	t.all[id] = k
	return wire.NewToken{Token: k.Token, Secret: tokenPrefix + id + "_" + secret}, nil
}

// List lists the tokens, by name.
func (t *Tokens) List() []wire.Token {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make([]wire.Token, 0, len(t.all))
	for _, k := range t.all {
		shown := k.Token
		shown.Used = k.used
		list = append(list, shown)
	}
	slices.SortFunc(list, func(a, b wire.Token) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// Revoke removes a token by its id or its name, and returns it.
func (t *Tokens) Revoke(which string) (wire.Token, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k, ok := t.all[which]
	for _, other := range t.all {
		if !ok && other.Name == which {
			k, ok = other, true
		}
	}
	if !ok {
		return wire.Token{}, ErrNoToken
	}
	if err := t.store.Delete(tokenKey + k.ID); err != nil {
		return wire.Token{}, err
	}
	delete(t.all, k.ID)
	return k.Token, nil
}

// Check says whose a token is; ErrUnknown of one that nobody has.
func (t *Tokens) Check(secret string, now time.Time) (Identity, error) {
	rest, ok := strings.CutPrefix(secret, tokenPrefix)
	id, secret, both := strings.Cut(rest, "_")
	t.mu.Lock()
	defer t.mu.Unlock()
	k := t.all[id]
	if !ok || !both || k == nil || subtle.ConstantTimeCompare([]byte(hash(secret)), []byte(k.Hash)) != 1 || !k.valid(now) {
		return Identity{}, ErrUnknown
	}
	role, err := ParseRole(k.Role)
	if err != nil {
		return Identity{}, ErrUnknown
	}
	k.used = now.UTC().Truncate(time.Second)
	return Identity{Name: "token " + k.Name, Key: "token:" + k.ID, Role: role}, nil
}

// Known is the id of the token that a secret says to be of, right or not; "" where there is
// none of that id.
func (t *Tokens) Known(secret string) string {
	id, _, _ := strings.Cut(strings.TrimPrefix(secret, tokenPrefix), "_")
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all[id] == nil {
		return ""
	}
	return id
}

// Valid reports whether the token of an identity still lets it in: sessions outlive neither
// a revocation nor an expiry.
func (t *Tokens) Valid(id Identity, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	key, ok := strings.CutPrefix(id.Key, "token:")
	if !ok {
		return true
	}
	k := t.all[key]
	return k != nil && k.valid(now)
}

func (k *token) valid(now time.Time) bool { return k.Expires.IsZero() || now.Before(k.Expires) }

// NewID is a name that nobody guesses soon, and no secret.
func NewID() string { return random(8) }

// random is n random bytes in text without separators.
func random(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails (crypto/rand)
	if n < 16 {
		return hex.EncodeToString(b)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func hash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}
