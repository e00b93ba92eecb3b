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
		// The thread is in the other namespace for good: it ends with this goroutine,
		// since it stays locked.
		runtime.LockOSThread()
		conn, err := enter(ctx, netns, addr)
		done <- outcome{conn, err}
	}()
	o := <-done
	return o.conn, o.err
}

func enter(ctx context.Context, netns, addr string) (net.Conn, error) {
	f, err := os.Open(netns)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	own, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	if target, err := os.Readlink(netns); err != nil || target != own { // else it is there already
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			return nil, fmt.Errorf("enter network namespace: %w", err)
		}
	}
	return new(net.Dialer).DialContext(ctx, "tcp", addr)
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
