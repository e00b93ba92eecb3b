// SPDX-License-Identifier: Apache-2.0

package process

import (
	"slices"
	"strings"
	"testing"
)

func TestRedact(t *testing.T) {
	r, err := NewRedactor(`--pin (\d+)|^(4\d{15})$`)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ in, want string }{
		{"psql --password hunter2 -h db", "psql --password *** -h db"},
		{"psql --password=hunter2", "psql --password=***"},
		{"mysql --db-password -v", "mysql --db-password -v"},
		{"env DB_PASSWORD=a API_TOKEN=b,c HOME=/root", "env DB_PASSWORD=*** API_TOKEN=*** HOME=/root"},
		{"curl https://joe:hunter2@example.test/a?access_key=K&x=1", "curl https://joe:***@example.test/a?access_key=***&x=1"},
		{"redis://:pw@host", "redis://:***@host"},
		{"app -token abc", "app -token ***"},
		{"tokenize input=x", "tokenize input=x"},
		{"ls /etc/passwd", "ls /etc/passwd"},
		{"4111111111111111 41", "*** 41"},
	} {
		got := r.Redact(strings.Split(c.in, " "))
		if want := strings.Split(c.want, " "); !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", c.in, got, want)
		}
	}
	got := r.Redact([]string{
		"sh", "-c", `curl -H "Authorization: Bearer abc.def" -H 'X-Api-Key: k1'; PASSWORD="a b" run --pin 1234`,
	})
	want := `curl -H "Authorization: Bearer ***" -H 'X-Api-Key: ***'; PASSWORD=*** run --pin ***`
	if got[2] != want {
		t.Errorf("script: got %s, want %s", got[2], want)
	}
}

// Each form of a secret that is known; § stands for it, arguments are separated by |.
var secretForms = []string{
	"app|--password|§", "app|--password=§", "app|-token|§", "app|--db.password=§", "java|-Dspring.datasource.password=§",
	"app|--pass|§", "app|--pass=§", "app|--pwd=§", "redis-server|--requirepass|§", "redis-cli|CONFIG|SET|requirepass|§",
	"redis-cli|-a|§", "redis-cli|-a§", "redis-cli|AUTH|§", "valkey-cli|-a|§", "keytool|-storepass|§", "app|--api-key|§",
	"app|--key=§", "app|--auth|§", "app|--github-token=§", "app|--cookie|§", "gpg|--passphrase|§", "app|--oauth2-bearer|§",
	"mysql|-p§", "mysqldump|-u|root|-p§", "/usr/bin/mariadb|-p§", "env|A=b|mysql|-p§", "sshpass|-p|§|ssh|h", "sshpass|-p§",
	"mongosh|-p|§", "ldapsearch|-w|§", "unzip|-qP|§", "sqlcmd|-P|§", "7z|x|-p§", "docker|login|-u|joe|-p|§",
	"curl|-u|joe:§|http://x", "curl|--user|joe:§", "curl|-sku|joe:§", "curl|-ujoe:§", "curl|--proxy-user=joe:§", "smbclient|-U|joe%§",
	"openssl|rsa|-passin|pass:§", "openssl|rsa|-passout|pass:§", "openssl|enc|-pass|pass:§",
	"env|DB_PASSWORD=§", "env|DB_PASS=§", "env|MYSQL_PWD=§", "env|PGPASSWORD=§", "env|ENCRYPTION_KEY=§", "env|API_TOKENS=§",
	"env|AWS_SECRET_ACCESS_KEY=§", "env|REDISCLI_AUTH=§", "docker|run|-e|DB_PASS=§", "kubectl|create|--from-literal=password=§",
	"curl|-H|Authorization: Bearer §", "curl|-H|Authorization:Basic §", "curl|-HX-Api-Key: §", "curl|-H|X-Vault-Token:§",
	"curl|-H|Cookie: session=§", "curl|-H|proxy-authorization: §", "x|password:§", "x|password: §",
	"mysqladmin|-u|root|password|§", "mariadb-admin|password|§", "redis-cli|AUTH|joe|§", "env|DB_PW=§", "app|--bindpw|§",
	"curl|-b|session=§", "curl|-sb|session=§", "curl|-bsession=§", "curl|-E|c.pem:§", "curl|--cert|c.pem:§", "curl|--proxy-cert=c.pem:§",
	"openssl|enc|-k|§", "openssl|enc|-K|§", "aws|configure|set|aws_secret_access_key|§", "npm|config|set|//r.example/:_authToken|§",
	"git|config|--global|github.token|§", "x|login|-c|-p|§", "redis-cli|-c|-a|§",
}

// Those within a longer argument, where the secret has an end.
var secretFormsWithin = []string{
	`curl|-d|{"password":"§"}`, `curl|-d|{"user":"joe","password": "§","x":1}`, `curl|-d|{"apiKey":"§"}`, `x|{\"token\":\"§\"}`,
	`x|{'secret': '§'}`, `x|a=1&access_token=§&b=2`, `x|{password: §}`, "x|user: joe\npassword: §\n",
	"psql|postgres://joe:§@db/x", "psql|postgres://joe:a@§@db/x", "psql|postgres://joe:a/§@db/x", "psql|postgres://joe:§",
	"psql|postgres://joe:1/§@db", "redis|redis://:§@h", "git|clone|https://§@github.com/x", "x|https://joe:§@h:80/a@b?x=c@d",
	"x|see https://h/x?token=§#y", `sh|-c|mysql --password § -h x`, `sh|-c|mysql -p§ db`, `sh|-c|FOO=1 DB_PASS=§ run`,
	`bash|-lc|cd x && redis-cli -a § ping`, `sh|-c|curl -u joe:§ http://h; ls`, `sh|-c|curl -H "Authorization: Bearer §" h`,
	`sh|-c|curl -H 'Cookie: a=b; c=§' h`, `sh|-c|bash -c 'mysql -p§'`, `sh|-c|bash -c "sshpass -p § ssh h"`, `sh|-c|app --password '§'`,
	`sh|-c|app --password="§"`, `sh|-c|PASSWORD = §`, `psql|-c|ALTER USER joe WITH PASSWORD '§'`, `ssh|h|run --token §`,
	`sh|-c|[ "$(redis-cli -a § ping)" = PONG ]`, `sh|-c|test "$(mysql -uroot -p§ -e 'select 1')"`, "sh|-c|n=`redis-cli -a § ping`",
	"sh|-c|echo \"`redis-cli -a § ping`\"", `sh|-c|r="$(curl -su joe:§ u)"`, `sh|-c|r=$(curl -u joe:§ u) && x`,
	`sh|-c|echo "a $(echo "b $(redis-cli -a § ping)" c)"`, `sh|-c|redis-cli -h $(curl h) -a § ping`, `sh|-c|TOKEN=$(redis-cli -a § get t) x`,
	`sh|-c|bash -c "x \"\$(redis-cli -a § ping)\""`, "sh|-c|bash -c \"x \\`redis-cli -a § ping\\`\"", `sh|-c|x "$(redis-cli -a §`,
	`sh|-c|--|redis-cli -a § ping`, `sh|-c|-x|redis-cli -a § ping`, `bash|-cex|redis-cli -a § ping`, `bash|-co|pipefail|A_PW=§ redis-cli -a § x`,
	`bash|-c|-o|pipefail|--|A_PW=§ redis-cli -a § x`, "sh|-c|\\\nmysql -p§", "sh|-c|redis-cli \\\n -a \\\n § ping",
	`sh|-c|curl -su "joe:§" u`, `sh|-c|curl -u"joe:§" u`, `sh|-c|mysql "-p§" db`, "sh|-c|# don't\nmysql -p§", `sh|-c|TOKEN=a"b §"c run`,
	`mysql|-e|ALTER USER joe IDENTIFIED BY '§'`, `mysql|-e|create user 'joe'@'%' identified with x by "§";`, `sh|-c|mysql -e "ALTER USER joe IDENTIFIED BY '§'"`,
	`sh|-c|mysql -e "ALTER USER joe IDENTIFIED BY \"§\""`, `python|-c|os.environ['TOKEN']='§'`, `python|-c|os.environ["TOKEN"] = "§"`,
	`sh|-c|redis-cli 2>&1 -a § ping`, `sh|-c|x="redis-cli -a § ping"`, `bash -c|x|bash -c'redis-cli -a § ping'`,
	`sh|-c|y="$(case $x in a) redis-cli -a § ping;; esac)"`, `sh|-c|[ "$TOKEN" == "§" ]`, `sh|-c|[ "$TOKEN" != '§' ]`,
	`mysql|-e|SET PASSWORD FOR 'joe'@'%' = '§'`, `ssh|h|curl -u \"joe:§\" h`,
	`ssh|h|mysql -p§ db`, `sh|-c|TOKEN=§\ § run`,
}

func redacted(t *testing.T, form, secret string) string {
	t.Helper()
	r, err := NewRedactor("")
	if err != nil {
		t.Fatal(err)
	}
	args := strings.Split(form, "|")
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "§", secret)
	}
	return strings.Join(r.Redact(args), "|")
}

func TestSecretForms(t *testing.T) {
	for _, form := range slices.Concat(secretForms, secretFormsWithin) {
		if !strings.Contains(form, "§") {
			t.Fatalf("%s has no secret", form)
		}
		for _, secret := range []string{"hunter2", "h'unter2", "x\\hunter2"} {
			if strings.Contains(secret, "x") && slices.Contains(secretFormsWithin, form) || strings.Contains(secret, "'") && strings.ContainsAny(form, "'{ ") {
				continue // it would have to be quoted
			}
			if got := redacted(t, form, secret); strings.Contains(got, "unter2") || !strings.Contains(got, hidden) {
				t.Errorf("%s: %s", form, got)
			}
		}
	}
	for _, form := range secretForms { // all of the argument
		for _, secret := range []string{"a b,c;hunter2", "&hunter2", `a"hunter2`, "=hunter2", "a@hunter2", "/a+hunter2", "a:hunter2"} {
			if got := redacted(t, form, secret); strings.Contains(got, "unter2") {
				t.Errorf("%s: %s", form, got)
			}
		}
	}
}

// What is no secret stays.
func TestNoSecrets(t *testing.T) {
	for _, form := range []string{
		"nginx|-c|/etc/nginx/nginx.conf", "vllm|--max-tokens|512|--max-tokens=512|--tokenizer=bert|--tokenizer|bert",
		"app|--key-file=/etc/x.key|--ssl-key|/etc/ssl/x.key|--private-key-file|/x|--key=server.pem|--tls-key=./tls/key",
		"app|--password-file|/run/secrets/p|--password-stdin|-x|--token-url=https://h/x|--no-password|x|--secret-name|y",
		"docker|run|-p|80:80|-u|1000:1000|-v|/run/secrets:/run/secrets|reg/my-secret:1.2", "ls|/etc/passwd|--color=auto",
		"curl|http://h:8080/@a/b|https://[::1]:80/x|http://h:8080|http://$HOST:$PORT/|ssh://git@h/x", "tar|-czf|x.tgz|a",
		"mongod|mongodb://a:27017,b:27017/db|-p|80", "env|PWD=/root|OLDPWD=/|HOME=/root|PGPASSFILE=/root/.pgpass",
		"mysql|-p|db|-u|root|--password|-v", "jq|{key: .name}", `sh|-c|ls -l "$HOME" && echo 'a b' | sort -k2`, "app|--use-token=true",
		"ssh|-p|22|h", "go|test|./...|-run|TestX", `x|{"max_tokens": 100, "key": "name"}`, "author=joe|compass=n|x|token", "sshd: joe|-D",
		"sort|--key=1,2|--key|2|--key=1.2,3nr", "sh|-c|sort --key=1,2 x; y", "docker|run|-v|tokens:/data|-v|secret:/data:ro|x",
		"sh|-c|docker run -v tokens:/data x", "curl|-b|jar|-E|cert.pem|-k", "openssl|req|-key|a.key|-keyout|b.key", "openssl|req|-newkey|rsa:2048", "find|x|-exec|mysql|-h|db|;",
		"mysql|-e|SELECT a ORDER BY 'b'", "git|config|user.name|joe", "kubectl|config|set-credentials|joe", "ping|-c|4|-w|2|h", "sh|-c|set -e; run x",
		"sh|-c|x \"$(date +%s)\" `hostname` $(ls 'a b') \\\n y # don't",
	} {
		if got := redacted(t, form, ""); got != form {
			t.Errorf("%s: %s", form, got)
		}
	}
}

// Whatever the secret is, nothing is left of it where it is the whole value.
func FuzzSecretForms(f *testing.F) {
	for i := range secretForms {
		f.Add(i, "hunter2")
	}
	f.Add(2, `a b"c'd`)
	f.Fuzz(func(t *testing.T, form int, secret string) {
		if form < 0 || form >= len(secretForms) {
			return
		}
		// What may stand in the form without a secret, or be taken for no secret.
		secret = "%!" + secret + "!%"
		if got := redacted(t, secretForms[form], secret); strings.Contains(got, secret) || strings.Contains(got, secret[2:]) {
			t.Errorf("%s with %q: %q", secretForms[form], secret, got)
		}
	})
}

// What is in quotes stays so.
func TestBalanced(t *testing.T) {
	for _, form := range secretFormsWithin {
		got := redacted(t, form, "hunter2")
		for _, quote := range []string{`"`, "'", "`"} {
			if (strings.Count(form, quote)-strings.Count(got, quote))%2 != 0 {
				t.Errorf("%s: %s", form, got)
			}
		}
	}
}

func TestRedactorRefuses(t *testing.T) {
	if _, err := NewRedactor("("); err == nil || !strings.Contains(err.Error(), `"("`) {
		t.Errorf("error %v does not name the pattern", err)
	}
}

func FuzzRedact(f *testing.F) {
	f.Add("psql --password=x", "y")
	f.Fuzz(func(t *testing.T, a, b string) {
		r, err := NewRedactor(`(a)|(b)(c)?`)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.Redact([]string{a, b}); len(got) != 2 {
			t.Errorf("%d arguments, want 2", len(got))
		}
	})
}

func BenchmarkRedact(b *testing.B) {
	r, err := NewRedactor("")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		r.Redact([]string{"/usr/bin/python3", "-m", "train", "--epochs=10", "--data", "/data/images", "--workers", "8"})
	}
}

// A probe that asks a command within quotes.
func BenchmarkRedactNested(b *testing.B) {
	r, err := NewRedactor("")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		r.Redact([]string{"/bin/sh", "-c", `[ "$(redis-cli -h "$(hostname)" -a pw ping)" = PONG ]`})
	}
}

func BenchmarkRedactScript(b *testing.B) {
	r, err := NewRedactor("")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		r.Redact([]string{
			"/bin/sh", "-c", `set -e; export DB_PASSWORD="$(cat /run/secrets/db)"; exec /usr/bin/app --listen :8080 --token=$TOKEN --db postgres://joe:$DB_PASSWORD@db/x`,
		})
	}
}
