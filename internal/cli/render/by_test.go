// SPDX-License-Identifier: Apache-2.0

package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// carried is a flow that has carried so much by now.
func carried(command string, pid, port uint32, tx, rx uint64) *orb8v1.Event {
	return &orb8v1.Event{NodeName: "n1", Event: &orb8v1.Event_Flow{Flow: &orb8v1.Flow{
		Protocol: "TCP", Role: orb8v1.Role_ROLE_CLIENT, FirstSeenNs: int64(port),
		Local:   &orb8v1.Endpoint{Ip: "10.0.0.1", Port: port, Workload: &orb8v1.Workload{Kind: "Process", Name: command}},
		Remote:  &orb8v1.Endpoint{Ip: "192.0.2.7", Port: 443},
		Process: &orb8v1.Process{Pid: pid, Command: command},
		Total:   &orb8v1.Counters{TxBytes: tx, RxBytes: rx}, Tcp: &orb8v1.TcpInfo{Retransmits: 1},
	}}}
}

func TestGroups(t *testing.T) {
	for _, tt := range formats {
		for _, by := range GroupKeys() {
			name := nameOf("by_"+by, tt.format, tt.width)
			t.Run(name, func(t *testing.T) {
				groups := NewGroups(by)
				now := time.Unix(0, 1795426872000000000)
				groups.Read(now, tableRows(t))
				rows := tableRows(t)
				for _, ev := range rows[:2] {
					ev.GetFlow().GetTotal().TxBytes += 3_000_000
				}
				var b bytes.Buffer
				if err := WriteGroups(&b, Options{Format: tt.format, Width: tt.width}, by, groups.Read(now.Add(2*time.Second), rows)); err != nil {
					t.Fatal(err)
				}
				golden(t, name, b.String())
				fits(t, b.String(), tt.format, tt.width)
			})
		}
	}
}

// TestRates: bytes a second are the difference of two readings, of flows that began in between
// all they have, and those of a flow that took another's place are not taken from its.
func TestRates(t *testing.T) {
	groups := NewGroups("process")
	start := time.Now()
	first := groups.Read(start, []*orb8v1.Event{carried("curl", 7, 1000, 500, 9000), carried("idle", 8, 1001, 70, 0)})
	if len(first) != 2 || first[0].Key != "curl/7" || first[0].RxRate != 0 {
		t.Errorf("first: %+v", first)
	}
	second := groups.Read(start.Add(2*time.Second), []*orb8v1.Event{
		carried("curl", 7, 1000, 700, 9000), carried("curl", 7, 1002, 100, 40_000), // the second is new
		carried("idle", 8, 1001, 20, 0), // fewer than before: another flow
	})
	want := []Group{
		{Key: "curl/7", Flows: 2, TxBytes: 800, RxBytes: 49_000, Retransmits: 2, TxRate: 150, RxRate: 20_000},
		{Key: "idle/8", Flows: 1, TxBytes: 20, Retransmits: 1},
	}
	if fmt.Sprint(second) != fmt.Sprint(want) {
		t.Errorf("got %+v, want %+v", second, want)
	}
	// To programs, numbers are numbers.
	var b bytes.Buffer
	if err := WriteGroups(&b, Options{Format: JSON}, "process", second[:1]); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(b.Bytes(), &got); err != nil || got["rxBytesPerSecond"] != 20_000.0 || got["by"] != "process" {
		t.Errorf("%s: %v", b.String(), err)
	}
}

// TestKeptColumn: what rows are sorted or chosen by is never left out.
func TestKeptColumn(t *testing.T) {
	for _, width := range []int{40, 60, 80} {
		for _, title := range []string{"RETR", "RTT", "IDLE", "PACKETS"} {
			var b bytes.Buffer
			if err := Flows(&b, Options{Format: Table, Width: width, Keep: []string{title}}, time.Now(), tableRows(t)); err != nil {
				t.Fatal(err)
			}
			if titles, _, _ := strings.Cut(b.String(), "\n"); !strings.Contains(titles, title) {
				t.Errorf("%d cells, without %s: %s", width, title, titles)
			}
			if width > 40 {
				fits(t, b.String(), Table, width)
			}
		}
		var b bytes.Buffer
		e := NewEvents(&b, Options{Format: Table, Width: width, Keep: []string{"RETR"}})
		if err := e.Titles(); err != nil || !strings.Contains(b.String(), "RETR") {
			t.Errorf("%d cells: %s, %v", width, b.String(), err)
		}
	}
	if flowTable(false).keeping(nil).layout(200)[flPackets] != 0 {
		t.Error("packets are shown though nobody asked")
	}
}
