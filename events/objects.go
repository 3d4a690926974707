package events

// Object is a stored object that an event names.
type Object struct {
	// Operation whose artifact it is; empty: it is the source.
	Operation string
	// Key is its place in the bucket, SHA256 that of its content, in hexadecimal.
	Key, SHA256 string
	Bytes       int64
}

// Objects are those that the event names, as the first to do so or, in a retry, once more.
func (e Event) Objects() (all []Object) {
	source := func(s *Source) {
		all = append(all, Object{Key: s.GetKey(), SHA256: s.GetSha256(), Bytes: s.GetBytes()})
	}
	artifact := func(operation string, a *Artifact) {
		all = append(all, Object{Operation: operation, Key: a.GetKey(), SHA256: a.GetSha256(), Bytes: a.GetBytes()})
	}
	switch m := e.Message.(type) {
	case *JobRequested:
		source(m.GetSource())
	case *OperationCompleted:
		artifact(m.GetOperation(), m.GetArtifact())
	case *ArtifactReplaced:
		artifact(m.GetOperation(), m.GetArtifact())
	case *OperationRetryRequested:
		if m.GetRequest() != nil {
			source(m.GetRequest().GetSource())
		}
		for _, c := range m.GetCompleted() {
			artifact(c.GetOperation(), c.GetArtifact())
		}
	}
	return all
}

// SealedWith are the ids of the keys that an event's personal data are sealed with.
func (e Event) SealedWith() (ids []string) {
	var requested *JobRequested
	switch m := e.Message.(type) {
	case *JobRequested:
		requested = m
	case *OperationRetryRequested:
		requested = m.GetRequest()
	}
	for _, sealed := range []*Sealed{requested.GetFileName(), requested.GetWebhookUrl()} {
		if id := sealed.GetKeyId(); id != "" {
			ids = append(ids, id)
		}
	}
	return ids
}
