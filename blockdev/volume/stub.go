package volume

import (
	"context"
	"errors"
	"os"
)

var errStub = errors.New("stub")

func (h *Host) CreateLV(ctx context.Context, vg, lv string, size int64) error { return errStub }
func (h *Host) OpenForWriting(ctx context.Context, vg, lv string) (*os.File, error) {
	return nil, errStub
}
func (h *Host) FinishLV(ctx context.Context, vg, lv string) error        { return errStub }
func (h *Host) RemoveLV(ctx context.Context, vg, lv string) error        { return errStub }
func (h *Host) ListLVs(ctx context.Context, vg string) ([]LVInfo, error) { return nil, errStub }

func (h *Host) Watch(ctx context.Context, f func(Ref, string)) error { <-ctx.Done(); return nil }
