// SPDX-License-Identifier: Apache-2.0

//go:build cluster

package cluster

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// metricsName is the name for which the certificate of the metrics is.
const metricsName = "orb8-agent.orb8-system.svc"

// optionalRoles are the ClusterRoles of the chart with everything that is optional.
func optionalRoles(t *testing.T) (roles []rbacv1.ClusterRole) {
	t.Helper()
	text, err := os.ReadFile("../../deploy/testdata/all.yaml")
	if err != nil {
		t.Fatal(err)
	}
	documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		var r rbacv1.ClusterRole
		err := documents.Decode(&r)
		if errors.Is(err, io.EOF) {
			return roles
		}
		if err != nil {
			t.Fatal(err)
		}
		if r.Kind == "ClusterRole" {
			roles = append(roles, r)
		}
	}
}

// metricsSecret makes a Secret with a certificate that signs itself, and returns that.
func (l *lab) metricsSecret(t *testing.T) (name string, cert *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{metricsName},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	secrets := l.client.CoreV1().Secrets(l.agents)
	s, err := secrets.Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "orb8-metrics-"}, Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{
			corev1.TLSCertKey:       pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
			corev1.TLSPrivateKeyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := secrets.Delete(context.Background(), s.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	return s.Name, cert
}

// TestOptionalParts: an agent with the rights that the chart gives it for them serves
// metrics over TLS to those who may have them, and writes alerts as Events of their pods.
func TestOptionalParts(t *testing.T) {
	l := shared
	if l.lab == "" {
		t.Skip("needs the cluster that test/cluster/run.sh makes")
	}
	roles := optionalRoles(t)
	l.withRole(t, func(r *rbacv1.ClusterRole) {
		at := slices.IndexFunc(roles, func(o rbacv1.ClusterRole) bool { return o.Name == r.Name })
		r.Rules = roles[at].Rules
	})
	secret, cert := l.metricsSecret(t)
	spec := l.agentSpec(t)
	spec.Volumes = append(spec.Volumes, corev1.Volume{
		Name: "metrics-tls", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: secret}},
	})
	c := &spec.Containers[0]
	c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "metrics-tls", MountPath: "/etc/orb8-tls", ReadOnly: true})
	c.Args = slices.DeleteFunc(c.Args, func(a string) bool { return strings.HasPrefix(a, "--metrics-a") })
	c.Args = append(c.Args, "--metrics-tls-cert=/etc/orb8-tls/tls.crt", "--metrics-tls-key=/etc/orb8-tls/tls.key",
		"--metrics-authentication=kubernetes", "--alert-events=warning")
	c.LivenessProbe.HTTPGet.Scheme, c.ReadinessProbe.HTTPGet.Scheme = corev1.URISchemeHTTPS, corev1.URISchemeHTTPS
	agent := l.extraAgent(t, "optional-", &spec)
	eventually(t, time.Minute, func() error {
		p, err := l.client.CoreV1().Pods(l.agents).Get(t.Context(), agent.Name, metav1.GetOptions{})
		if err == nil {
			_, err = readySince(p) // by the kubelet's probes, which send no token
		}
		return err
	})
	t.Run("metrics", func(t *testing.T) {
		at := slices.IndexFunc(roles, func(r rbacv1.ClusterRole) bool { return r.Name == "orb8-metrics-reader" })
		l.readMetrics(t, agent.Name, cert, &roles[at])
	})
	t.Run("events", func(t *testing.T) { l.findEvent(t) })
}

func (l *lab) readMetrics(t *testing.T, agent string, cert *x509.Certificate, reader *rbacv1.ClusterRole) {
	t.Helper()
	addr, stop, err := l.forwardPort(agent, 9091)
	if err != nil {
		t.Fatal(err)
	}
	defer close(stop)
	trusted := x509.NewCertPool()
	trusted.AddCert(cert)
	client := &http.Client{Timeout: askFor, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: trusted, ServerName: metricsName}, DisableKeepAlives: true,
	}}
	get := func(path, token string) (int, string, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+addr+path, http.NoBody)
		if err != nil {
			return 0, "", err
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := client.Do(req)
		if err != nil {
			return 0, "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body), err
	}
	wants := func(what, path, token string, code int, says string) error {
		got, body, err := get(path, token)
		if err != nil || got != code || !strings.Contains(body, says) {
			return fmt.Errorf("%s: %d %.200q %w, want %d %q", what, got, body, err, code, says)
		}
		return nil
	}
	name := "orb8-test-" + l.namespace
	accounts := l.client.CoreV1().ServiceAccounts(l.namespace)
	if _, err := accounts.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "scraper"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	issued, err := accounts.CreateToken(t.Context(), "scraper", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	token := issued.Status.Token
	for _, err := range []error{
		wants("nobody", "/metrics", "", http.StatusUnauthorized, "bearer token"),
		wants("a stranger", "/metrics", token[:len(token)-8]+"AAAAAAAA", http.StatusUnauthorized, "does not know this token"),
		wants("who may not", "/metrics", token, http.StatusForbidden, "system:serviceaccount:"+l.namespace+":scraper"),
		wants("health", "/healthz", "", http.StatusOK, "ok"),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: reader.Rules}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: l.namespace, Name: "scraper"}},
	}
	if _, err := l.client.RbacV1().ClusterRoles().Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.client.RbacV1().ClusterRoles().Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	if _, err := l.client.RbacV1().ClusterRoleBindings().Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.client.RbacV1().ClusterRoleBindings().Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	// What was refused is kept for 10 s.
	eventually(t, 30*time.Second, func() error {
		return wants("who may", "/metrics", token, http.StatusOK, "orb8_agent_workload_series")
	})
}

// findEvent has a pod do what raises an alert, and looks for it among the pod's Events.
func (l *lab) findEvent(t *testing.T) {
	t.Helper()
	p := l.troublePods(t, map[string]corev1.PodSpec{"noisy": l.troubleSpec(t, l.nodes[0])})["noisy"]
	if _, err := l.deed(t.Context(), p, "memfd"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, func() error {
		// As kubectl describe asks.
		list, err := l.client.CoreV1().Events(p.Namespace).List(t.Context(), metav1.ListOptions{
			FieldSelector: "involvedObject.kind=Pod,involvedObject.name=" + p.Name + ",involvedObject.uid=" + string(p.UID),
		})
		if err != nil {
			return err
		}
		for _, e := range list.Items {
			if e.Source.Component == "orb8" && e.Reason == "MemfdExecution" && e.Type == corev1.EventTypeWarning && strings.Contains(e.Message, "rule memfd_execution") {
				return nil
			}
		}
		return fmt.Errorf("%d Events of %s, none of the alert", len(list.Items), p.Name)
	})
}
