// SPDX-License-Identifier: Apache-2.0

//go:build linux

package tpu

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"
)

// method of the runtime's service; see query for its messages.
const method = "/tpu.monitoring.runtime.RuntimeMetricService/GetRuntimeMetric"

// dial returns a connection to the runtime in the network namespace of a process. It
// does not connect yet.
func dial(proc string, pid uint32, port int) (*grpc.ClientConn, error) {
	netns := filepath.Join(proc, strconv.Itoa(int(pid)), "ns/net")
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	return grpc.NewClient("passthrough:///tpu",
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<20)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dialIn(ctx, netns, addr) }))
}

// dialIn connects from within a network namespace.
func dialIn(ctx context.Context, netns, addr string) (net.Conn, error) {
	type outcome struct {
		conn net.Conn
		err  error
	}
	done := make(chan outcome, 1)
	go func() {
		runtime.LockOSThread()
		conn, back, err := enter(ctx, netns, addr)
		if back {
			runtime.UnlockOSThread()
		} // else the thread ends with this goroutine, or if it is the first one, waits for ever
		done <- outcome{conn, err}
	}()
	o := <-done
	return o.conn, o.err
}

// enter connects from within a network namespace. back: the thread is in its own one
// again, or has never left it.
func enter(ctx context.Context, netns, addr string) (conn net.Conn, back bool, err error) {
	// Threads, the first one too, have a namespace each: /proc/self is the first one's.
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, true, err
	}
	defer own.Close()
	other, err := os.Open(netns)
	if err != nil {
		return nil, true, err
	}
	defer other.Close()
	if err := unix.Setns(int(other.Fd()), unix.CLONE_NEWNET); err != nil {
		if errors.Is(err, unix.EPERM) && same(own, other) { // it is there already
			conn, err = new(net.Dialer).DialContext(ctx, "tcp", addr)
			return conn, true, err
		}
		return nil, true, fmt.Errorf("enter network namespace: %w", err)
	}
	conn, err = new(net.Dialer).DialContext(ctx, "tcp", addr)
	return conn, unix.Setns(int(own.Fd()), unix.CLONE_NEWNET) == nil, err
}

func same(a, b *os.File) bool {
	x, errX := a.Stat()
	y, errY := b.Stat()
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// raw passes messages on as they are.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}

// query asks for a metric: MetricRequest{metric_name = 1}. It returns the values by
// device number.
func query(ctx context.Context, conn *grpc.ClientConn, name string) (map[int64]float64, error) {
	request := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), name)
	var answer []byte
	if err := conn.Invoke(ctx, method, &request, &answer, grpc.ForceCodec(raw{})); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, err
	}
	return decode(answer)
}

var errMalformed = errors.New("an answer that cannot be read")

// decode reads MetricResponse{metric = 1: TPUMetric{metrics = 3: Metric{attribute = 1:
// Attribute{value = 2: AttrValue{int_attr = 3}}, gauge = 3: Gauge{as_double = 1, as_int
// = 2}}}}. Metrics without a device number or a gauge are left out.
func decode(answer []byte) (map[int64]float64, error) {
	values := make(map[int64]float64)
	err := fields(answer, func(n protowire.Number, _ protowire.Type, metric []byte, _ uint64) error {
		if n != 1 {
			return nil
		}
		return fields(metric, func(n protowire.Number, _ protowire.Type, one []byte, _ uint64) error {
			if n != 3 {
				return nil
			}
			device, value, ok, err := decodeOne(one)
			if err == nil && ok {
				values[device] = value
			}
			return err
		})
	})
	return values, err
}

func decodeOne(metric []byte) (device int64, value float64, ok bool, err error) {
	named, measured := false, false
	err = fields(metric, func(n protowire.Number, _ protowire.Type, part []byte, _ uint64) error {
		switch n {
		case 1:
			return fields(part, func(n protowire.Number, _ protowire.Type, attr []byte, _ uint64) error {
				if n != 2 {
					return nil
				}
				named = true // a number of 0 is not written
				return fields(attr, func(n protowire.Number, t protowire.Type, _ []byte, v uint64) error {
					switch {
					case n == 3 && t == protowire.VarintType:
						device = int64(v)
					case n != 3:
						named = false
					}
					return nil
				})
			})
		case 3:
			measured = true
			return fields(part, func(n protowire.Number, t protowire.Type, _ []byte, v uint64) error {
				switch {
				case n == 1 && t == protowire.Fixed64Type:
					value = math.Float64frombits(v)
				case n == 2 && t == protowire.VarintType:
					value = float64(int64(v))
				}
				return nil
			})
		}
		return nil
	})
	return device, value, named && measured, err
}

// fields yields the fields of a message: bytes, or a number.
func fields(message []byte, yield func(protowire.Number, protowire.Type, []byte, uint64) error) error {
	for len(message) > 0 {
		n, t, size := protowire.ConsumeTag(message)
		if size < 0 {
			return errMalformed
		}
		message = message[size:]
		var text []byte
		var number uint64
		switch t {
		case protowire.BytesType:
			text, size = protowire.ConsumeBytes(message)
		case protowire.VarintType:
			number, size = protowire.ConsumeVarint(message)
		case protowire.Fixed64Type:
			number, size = protowire.ConsumeFixed64(message)
		default:
			size = protowire.ConsumeFieldValue(n, t, message)
		}
		if size < 0 {
			return errMalformed
		}
		message = message[size:]
		if err := yield(n, t, text, number); err != nil {
			return err
		}
	}
	return nil
}
