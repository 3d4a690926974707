// Package testenv runs the real services that tests talk to, without containers:
// Apache Kafka from its own jars, and others beside it. install.sh fetches what is
// missing. Everything started here ends with the process that started it.
package testenv
