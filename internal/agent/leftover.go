package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/trayd/trayd/blockdev"
)

// A node of ours is left over when its disc is out of the drive and QEMU can't delete
// it, because an export or a block job of another client uses it. It is asked for again
// at the events that end such a use and at every look. Nothing durable speaks of it:
// its name carries our mark, so the sweep after a connect finds it in QEMU.

// leaveNode notes that a node could not be deleted; drive is the one that it was in, ""
// where that is not known any more.
func (v *vm) leaveNode(node, drive string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, known := v.left[node]; known {
		return
	}
	if v.left == nil {
		v.left = make(map[string]string)
	}
	v.left[node] = drive
	v.a.log.Warn("a node can't be deleted: something else in QEMU uses it", "vm", v.name, "drive", drive, "node", node)
}

// nodeGone notes that a node is deleted, if it was left over.
func (v *vm) nodeGone(node string) {
	v.mu.Lock()
	drive, was := v.left[node]
	delete(v.left, node)
	v.mu.Unlock()
	if was {
		v.a.publish(Event{Type: EventReleased, VM: v.name, Drive: drive, Detail: "node " + node + ", which something else in QEMU used, is gone"})
	}
}

// leftover are the nodes that a drive's discs left.
func (v *vm) leftover(drive string) []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	var nodes []string
	for n, d := range v.left {
		if d == drive {
			nodes = append(nodes, n)
		}
	}
	slices.Sort(nodes)
	return nodes
}

// deleteNode deletes a node outside the drive; one in use is noted.
func (s *session) deleteNode(ctx context.Context, node, drive string) error {
	err := blockdev.DeleteNode(ctx, s.conn, node)
	var inUse *blockdev.NodeInUseError
	if errors.As(err, &inUse) {
		s.vm.leaveNode(node, drive)
		return nil
	}
	if err == nil {
		s.vm.nodeGone(node)
	}
	return err
}

// sweepNodes deletes the nodes that carry our mark and that no record speaks of.
func (s *session) sweepNodes(ctx context.Context) {
	ctx, cancel := s.command(ctx)
	defer cancel()
	nodes, err := blockdev.Nodes(ctx, s.conn, s.vm.a.mark)
	if err != nil {
		return // asked for again at the next connect
	}
	for _, n := range nodes {
		if !s.vm.nodesInUse(nil)[n] && !s.vm.holds(n) {
			_ = s.deleteNode(ctx, n, "") // at the next chance
		}
	}
	s.vm.mu.Lock()
	var gone []string // without our doing
	for n := range s.vm.left {
		if !slices.Contains(nodes, n) {
			gone = append(gone, n)
		}
	}
	s.vm.mu.Unlock()
	for _, n := range gone {
		s.vm.nodeGone(n)
	}
}

// sweepLeft is sweepNodes where nodes are known to be left over.
func (s *session) sweepLeft(ctx context.Context) {
	s.vm.mu.Lock()
	left := len(s.vm.left)
	s.vm.mu.Unlock()
	if left > 0 {
		s.sweepNodes(ctx)
	}
}

// whyLeft says of nodes why they are left over.
func whyLeft(nodes []string) []string {
	var words []string
	for _, n := range nodes {
		words = append(words, fmt.Sprintf("node %s, in use by an export or a block job of another client", n))
	}
	return words
}
