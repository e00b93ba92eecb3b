// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
	"github.com/Ignoramuss/orb8/internal/testwait"
)

// fill gives every field of m a value, every text the same. Of a oneof it takes the
// member with the number which, if that is one.
func fill(m protoreflect.Message, text string, which protoreflect.FieldNumber, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if o := f.ContainingOneof(); o != nil && !o.IsSynthetic() && o.Fields().ByNumber(which) != nil && f.Number() != which {
			continue
		}
		value := func(f protoreflect.FieldDescriptor, fresh func() protoreflect.Value) (protoreflect.Value, bool) {
			switch f.Kind() {
			case protoreflect.StringKind:
				return protoreflect.ValueOfString(text), true
			case protoreflect.BytesKind:
				return protoreflect.ValueOfBytes([]byte(text)), true
			case protoreflect.BoolKind:
				return protoreflect.ValueOfBool(true), true
			case protoreflect.EnumKind:
				return protoreflect.ValueOfEnum(1), true
			case protoreflect.MessageKind:
				v := fresh()
				if depth == 0 {
					return v, false
				}
				fill(v.Message(), text, which, depth-1)
				return v, true
			case protoreflect.DoubleKind:
				return protoreflect.ValueOfFloat64(0.5), true
			case protoreflect.Uint32Kind:
				return protoreflect.ValueOfUint32(7), true
			case protoreflect.Uint64Kind:
				return protoreflect.ValueOfUint64(7), true
			case protoreflect.Int64Kind:
				return protoreflect.ValueOfInt64(time.Now().UnixNano()), true
			}
			return protoreflect.Value{}, false
		}
		switch {
		case f.IsMap():
			of := m.Mutable(f).Map()
			if v, ok := value(f.MapValue(), of.NewValue); ok {
				of.Set(protoreflect.ValueOfString(text).MapKey(), v)
			}
		case f.IsList():
			of := m.Mutable(f).List()
			if v, ok := value(f, of.NewElement); ok {
				of.Append(v)
			}
		default:
			if v, ok := value(f, func() protoreflect.Value { return m.NewField(f) }); ok {
				m.Set(f, v)
			}
		}
	}
}

// hostile has what a terminal acts on, and a line of its own.
const hostile = "a\x1b[31;1mb\x1b]0;owned\a\x1b]52;c;eA==\x1b\\\u009b2J\u202e\u2066\r\x00\u200b\nFORGED line"

// hostileAgent says nothing but text.
func hostileAgent(text string, end error) *fakeAgent {
	a := &fakeAgent{status: &orb8v1.AgentStatus{}, end: end}
	fill(a.status.ProtoReflect(), text, 0, 6)
	a.status.Healthy = false
	kinds := (&orb8v1.Event{}).ProtoReflect().Descriptor().Oneofs().Get(0).Fields()
	for i := range kinds.Len() {
		e := &orb8v1.Event{}
		fill(e.ProtoReflect(), text, kinds.Get(i).Number(), 6)
		a.events = append(a.events, e)
	}
	return a
}

// serve makes an agent available until the test ends.
func serve(t *testing.T, a *fakeAgent) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	orb8v1.RegisterOrbitAgentServiceServer(s, a)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		testwait.Receive(t, "the end of the server", done)
	})
	return l.Addr().String()
}

// checkHostile runs commands that show what an agent says and looks at what they print.
func checkHostile(t *testing.T, a *fakeAgent, commands ...string) {
	t.Helper()
	addr := serve(t, a)
	for _, args := range commands {
		var stdout, stderr bytes.Buffer
		c := Config{Version: "test", Stdout: &stdout, Stderr: &stderr, Getenv: func(string) string { return "" }, DefaultAgent: "127.0.0.1:1"}
		all := append(strings.Fields(args), "--agent", addr)
		if strings.HasPrefix(args, "trace") {
			all = append(all, "--duration", "150ms")
		}
		Run(context.Background(), c, all)
		for name, out := range map[string]string{"standard output": stdout.String(), "standard error": stderr.String()} {
			checkPrintable(t, out)
			for line := range strings.Lines(out) {
				if strings.HasPrefix(line, "FORGED") {
					t.Errorf("orb8 %s: a line of the agent's own on %s: %q", args, name, out)
				}
			}
		}
		if t.Failed() {
			t.Fatalf("orb8 %s\n%q\n%q", args, &stdout, &stderr)
		}
	}
}

// showing are the commands that show what an agent says.
var showing = []string{
	"status", "status -o wide", "status -o compact", "status -o json",
	"flows", "flows -o wide", "flows -o compact", "flows -o json",
	"gpus", "gpus -o wide", "gpus -o compact", "gpus -o json",
	"trace network", "trace network -o wide", "trace network -o compact", "trace network -o json", "trace network -q",
	"trace gpu", "trace gpu -o wide", "trace gpu -o compact", "trace gpu -o json",
}

// Whoever answers at an agent's address decides about characters, not about what the
// terminal does, nor about lines.
func TestHostileAgent(t *testing.T) {
	checkHostile(t, hostileAgent(hostile, nil), showing...)
	for _, code := range []codes.Code{codes.InvalidArgument, codes.Unavailable, codes.Unimplemented, codes.Internal, codes.ResourceExhausted} {
		checkHostile(t, hostileAgent(hostile, status.Error(code, hostile)), showing...)
	}
}

// FuzzHostileAgent is the same with any text.
func FuzzHostileAgent(f *testing.F) {
	f.Add(hostile)
	f.Add("\x1b[0m\xc2")
	f.Fuzz(func(t *testing.T, text string) {
		text = strings.ToValidUTF8(strings.ReplaceAll(text, "FORGED", ""), "") // others are not sent
		checkHostile(t, hostileAgent(text+"\nFORGED", status.Error(codes.Internal, text)), "status -o wide", "flows", "gpus -o json")
	})
}
