// SPDX-License-Identifier: Apache-2.0

//go:build cluster

package cluster

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// imageWorkloads is made by lab/workloads.sh.
const imageWorkloads = "orb8.test/workloads:1"

// ordinaryWorkloads are shell scripts by pod and container. All go on until their pod
// is deleted.
func ordinaryWorkloads() map[string]map[string]string {
	return map[string]map[string]string{
		"redis": {
			// Writes snapshots and a log of changes, for which it forks.
			"server": `exec redis-server --save 10 1 --appendonly yes --auto-aof-rewrite-min-size 1mb --dir /tmp`,
			"load":   `until redis-cli ping; do sleep 1; done; while :; do redis-benchmark -q -n 20000 -c 20; sleep 1; done`,
		},
		"nginx": {
			"server": `exec nginx -g 'daemon off;'`,
			"load":   `while :; do for i in $(seq 20); do curl -s -o /dev/null http://127.0.0.1/ || sleep 1; done; sleep 0.2; done`,
		},
		"python":  {"main": "cat >/tmp/work.py <<'END'\n" + pythonWork + "END\nexec python3 /tmp/work.py"},
		"jvm":     {"main": "cat >/tmp/work.bsh <<'END'\n" + javaWork + "END\nexec bsh /tmp/work.bsh"},
		"shell":   {"main": shellWork},
		"install": {"main": installWork},
	}
}

const pythonWork = `
import concurrent.futures, hashlib, json, multiprocessing, os, socket, subprocess, tempfile, threading, time

def digest(n):
    return hashlib.sha256(os.urandom(n)).hexdigest()

if __name__ == "__main__":
    while True:
        with concurrent.futures.ProcessPoolExecutor(2) as pool:
            list(pool.map(digest, [100000] * 20))
        for command in (["ls", "-l", "/"], ["sort", "/etc/passwd"], "date | wc -c"):
            subprocess.run(command, shell=isinstance(command, str), capture_output=True, check=True)
        with tempfile.TemporaryDirectory() as folder, open(folder + "/x.json", "w") as f:
            json.dump({"now": time.time()}, f)
        server = socket.create_server(("127.0.0.1", 0))
        client = threading.Thread(target=lambda: socket.create_connection(server.getsockname()).close())
        client.start()
        server.accept()[0].close()
        client.join()
        time.sleep(1)
`

const javaWork = `
while (true) {
    r = new Runnable() { run() { m = new java.util.HashMap(); for (i = 0; i < 20000; i++) m.put("" + i, new byte[100]); } };
    threads = new java.util.ArrayList();
    for (n = 0; n < 4; n++) { t = new Thread(r); t.start(); threads.add(t); }
    for (t : threads) t.join();
    p = new ProcessBuilder(new String[] {"date", "-u"}).start();
    p.waitFor();
    f = java.io.File.createTempFile("work", ".txt");
    f.delete();
    System.gc();
    Thread.sleep(1000);
}
`

const shellWork = `
trap 'exit 0' TERM
cat >/tmp/job.sh <<'END'
#!/bin/sh
find /usr/share -name '*.txt' | sort | head -50 | xargs -r cksum >/tmp/sums
tar cz -f /tmp/backup.tar.gz /etc 2>/dev/null
gzip -t /tmp/backup.tar.gz && date >>/tmp/log
END
chmod +x /tmp/job.sh
echo '* * * * * root /tmp/job.sh' >/etc/cron.d/job
cron
while :; do
	/tmp/job.sh
	for i in 1 2 3; do echo "$i" | sed s/1/one/ | tr a-z A-Z | grep -c . ; done >/dev/null
	sleep 2 & wait $!
done
`

const installWork = `
while :; do
	apt-get -q install -y --no-download /packages/*.deb || dpkg -i /packages/*.deb
	hello && less --version && ssh -V
	dpkg -P hello nano
	sleep 5
done
`

// TestOrdinaryWorkloads runs ordinary workloads and writes the alerts that they raise
// to the file ORB8_TEST_WORKLOADS.
func TestOrdinaryWorkloads(t *testing.T) {
	l := shared
	file := os.Getenv("ORB8_TEST_WORKLOADS")
	if file == "" {
		t.Skip("ORB8_TEST_WORKLOADS names no file for the alerts")
	}
	last := 5 * time.Minute
	if text := os.Getenv("ORB8_TEST_WORKLOADS_FOR"); text != "" {
		var err error
		if last, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	since := time.Now()
	names := l.startWorkloads(t)
	time.Sleep(last)
	l.stillRunning(t, names)
	alerts, err := l.alerts(t.Context(), since)
	if err != nil {
		t.Fatal(err)
	}
	alerts = slices.DeleteFunc(alerts, func(e *orb8v1.Event) bool { return !slices.Contains(names, e.GetAlert().GetWorkload().GetPodName()) })
	text := alertsTable(alerts)
	t.Logf("%d alerts of %s in %v:\n%s", len(alerts), strings.Join(names, ", "), last, text)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (l *lab) startWorkloads(t *testing.T) (names []string) {
	t.Helper()
	for name, scripts := range ordinaryWorkloads() {
		spec := l.podSpec(l.nodes[0])
		spec.Containers = nil
		for container, script := range scripts {
			c := l.container(container)
			c.Image, c.Command = imageWorkloads, []string{"/bin/sh", "-c", script}
			spec.Containers = append(spec.Containers, c)
		}
		spec.RestartPolicy = corev1.RestartPolicyNever
		l.testPod(t, name, spec)
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// stillRunning checks that no workload has ended.
func (l *lab) stillRunning(t *testing.T, names []string) {
	t.Helper()
	for _, name := range names {
		p, err := l.waitPod(t.Context(), name, "Pod", name)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, c := range p.Status.ContainerStatuses {
			if c.State.Running != nil {
				continue
			}
			log, err := l.client.CoreV1().Pods(l.namespace).GetLogs(name, &corev1.PodLogOptions{Container: c.Name}).DoRaw(t.Context())
			t.Errorf("container %s of %s has ended: %v, %v:\n%s", c.Name, name, c.State.Terminated, err, log)
		}
	}
}

// alertsTable has a line for what is the same but for its time, with how often it was.
func alertsTable(alerts []*orb8v1.Event) string {
	counts := map[string]uint64{}
	for _, e := range alerts {
		a := e.GetAlert()
		line := strings.Join([]string{
			a.GetWorkload().GetPodName(), a.GetRule(), strings.ToLower(strings.TrimPrefix(a.GetSeverity().String(), "SEVERITY_")),
			a.GetProcess().GetExecutable().GetPath(), a.GetSyscall(), a.GetSummary(),
		}, "\t")
		counts[line] += 1 + a.GetRepeated()
	}
	var lines []string
	for line, n := range counts {
		lines = append(lines, fmt.Sprintf("%s\t%d", line, n))
	}
	slices.Sort(lines)
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "POD\tRULE\tSEVERITY\tEXECUTABLE\tCALL\tSUMMARY\tTIMES")
	for _, line := range lines {
		fmt.Fprintln(w, line)
	}
	w.Flush()
	return b.String()
}
