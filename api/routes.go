package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3gen"
	"github.com/go-fuego/fuego"

	"github.com/pixtools/pixtools/commands/operations"
	"github.com/pixtools/pixtools/internal/apikeys"
	"github.com/pixtools/pixtools/internal/egress"
)

const (
	// scopeMark is where a route says which scope it needs; openMark stands there if none.
	scopeMark = "x-scope"
	openMark  = "open"
	// anyScope is for what every sender may ask, and nobody, too.
	anyScope apikeys.Scope = "any"
)

// needs says which scope a route needs.
func needs(scope apikeys.Scope) fuego.RouteOption {
	return func(r *fuego.BaseRoute) { r.Operation.Extensions = map[string]any{scopeMark: string(scope)} }
}

// open is a route that takes no notice of keys.
func open(r *fuego.BaseRoute) { r.Operation.Extensions = map[string]any{scopeMark: openMark} }

// accessOf says which scope each route needs, by its pattern. A route that does not say is no
// route: it would be open to all, or to nobody.
func accessOf(doc *openapi3.T) (map[string]apikeys.Scope, error) {
	access := map[string]apikeys.Scope{}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			switch scope, _ := op.Extensions[scopeMark].(string); scope {
			case "":
				return nil, fmt.Errorf("api: %s %s does not say who may use it: add needs(apikeys.Read), needs(apikeys.Submit), needs(apikeys.Operate) or open to its route", method, path)
			case openMark:
			default:
				access[method+" "+path] = apikeys.Scope(scope)
			}
		}
	}
	return access, nil
}

// routes registers every route of the API, and with it its description.
func (s *Server) routes(f *fuego.Server) {
	problems := func(codes ...int) fuego.RouteOption {
		var all []fuego.RouteOption
		for _, code := range codes {
			all = append(all, fuego.OptionAddResponse(code, http.StatusText(code), fuego.Response{Type: Problem{}, ContentTypes: []string{"application/problem+json"}}))
		}
		return fuego.GroupOptions(all...)
	}
	fuego.Post(f, "/api/process", s.process,
		needs(apikeys.Submit), fuego.OptionOperationID("process"), fuego.OptionSummary("Submit a picture"),
		fuego.OptionOverrideDescription("Stores the picture and accepts a job. The answer comes once both are durable."),
		fuego.OptionAddResponse(http.StatusAccepted, "Accepted", fuego.Response{Type: Accepted{}, ContentTypes: []string{"application/json"}}),
		problems(400, 404, 409, 413, 422, 429, 503, 507))
	fuego.Post(f, "/api/uploads", s.upload,
		needs(apikeys.Submit), fuego.OptionOperationID("upload"), fuego.OptionSummary("Prepare a direct upload"),
		fuego.OptionOverrideDescription("Signs a request with which the client stores a file itself, in the object storage. It may be larger than MAX_UPLOAD_BYTES; POST /api/process then takes upload in the place of file."),
		problems(400, 413, 422, 503, 507))
	picked := fuego.GroupOptions(
		fuego.OptionQuery("status", "Only jobs of this status, or of these, with commas"),
		fuego.OptionQuery("outcome", "Only jobs of this outcome, or of these, with commas"),
		fuego.OptionQuery("operation", "Only jobs that asked for this operation"),
		fuego.OptionQuery("since", "Requested at this time or later, RFC 3339"), fuego.OptionQuery("until", "Requested before this time, RFC 3339"),
		fuego.OptionQuery("q", "Only jobs whose id begins so. File names are kept encrypted and cannot be searched for"),
		fuego.OptionQuery("after", "A position from a Pixtools-Position header: wait until it is visible"),
		fuego.OptionQuery("at", "A time, RFC 3339, to the microsecond: the jobs as they were then"),
		problems(422, 503))
	fuego.Get(f, "/api/jobs", s.jobs,
		needs(apikeys.Read), fuego.OptionOperationID("jobs"), fuego.OptionSummary("List jobs"),
		fuego.OptionOverrideDescription("The newest first. Jobs that come meanwhile do not move the pages that follow."),
		fuego.OptionQuery("limit", "How many, 1 to 500 (LIST_MAX_JOBS), default 50"),
		fuego.OptionQuery("cursor", "next of the page before; everything else as it was there"), picked)
	fuego.Get(f, "/api/jobs/totals", s.jobTotals,
		needs(apikeys.Read), fuego.OptionOperationID("jobTotals"), fuego.OptionSummary("Count jobs"),
		fuego.OptionOverrideDescription("By status, by outcome and by operation."), picked)
	fuego.Get(f, "/api/jobs/{job_id}", s.job,
		needs(apikeys.Read), fuego.OptionOperationID("job"), fuego.OptionSummary("Read a job"),
		fuego.OptionOverrideDescription("Links are signed anew at each read. Right after its submission a job is found, never 404."),
		fuego.OptionQuery("after", "A position from a Pixtools-Position header: wait until it is visible"),
		fuego.OptionQuery("wait", "Seconds to wait for the job's end; then it is answered as it is"),
		fuego.OptionQuery("at", "A position or a time: the job as it was then"),
		problems(404, 422, 503))
	fuego.Get(f, "/api/jobs/{job_id}/events", s.history,
		needs(apikeys.Read), fuego.OptionOperationID("history"), fuego.OptionSummary("Read a job's history"),
		fuego.OptionOverrideDescription("Every event of the job as the log has it, what caused it, how long that took, and the job after it."),
		fuego.OptionQuery("after", "A position from a Pixtools-Position header: wait until it is visible"),
		problems(404, 422, 503))
	fuego.GetStd(f, "/api/jobs/{job_id}/stream", s.stream,
		needs(apikeys.Read), fuego.OptionOperationID("stream"), fuego.OptionSummary("Follow a job"),
		fuego.OptionOverrideDescription("Server-sent events. event: job carries the whole job, at once and after each change; its id is a position. event: progress tells how far an operation is."),
		problems(404, 422, 429, 503))
	fuego.Post(f, "/api/jobs/{job_id}/cancel", s.cancel,
		needs(apikeys.Submit), fuego.OptionOperationID("cancel"), fuego.OptionSummary("Cancel a job"),
		fuego.OptionOverrideDescription("Operations without an outcome are given up; results that are there stay. What is being worked on is stopped."),
		fuego.OptionAddResponse(http.StatusAccepted, "Accepted", fuego.Response{Type: Cancelled{}, ContentTypes: []string{"application/json"}}),
		problems(404, 409, 422, 503))
	fuego.Post(f, "/api/jobs/{job_id}/retry", s.retry,
		needs(apikeys.Submit), fuego.OptionOperationID("retry"), fuego.OptionSummary("Retry a job"),
		fuego.OptionOverrideDescription("Operations that did not complete run again, as a new revision of the job; results that are there stay. The job has another end then."),
		fuego.OptionAddResponse(http.StatusAccepted, "Accepted", fuego.Response{Type: Retried{}, ContentTypes: []string{"application/json"}}),
		problems(404, 409, 413, 422, 503))
	fuego.Delete(f, "/api/jobs/{job_id}", s.delete,
		needs(apikeys.Submit), fuego.OptionOperationID("deleteJob"), fuego.OptionSummary("Delete a job"),
		fuego.OptionOverrideDescription("For good: from here on the job is 404, and no list has it. Its pictures are removed a moment later. An open job is 409: cancel it first. What is submitted again under an idempotency key of it is 422."),
		fuego.OptionDefaultStatusCode(http.StatusNoContent), problems(404, 409, 422, 503))
	fuego.Post(f, "/api/jobs/{job_id}/webhook", s.redeliver,
		needs(apikeys.Submit), fuego.OptionOperationID("redeliver"), fuego.OptionSummary("Call a job's webhook again"),
		fuego.OptionOverrideDescription("For a webhook that failed, or whose next attempt is due later: one attempt is made now, with the same webhook-id."),
		fuego.OptionAddResponse(http.StatusAccepted, "Accepted", fuego.Response{Type: Redelivered{}, ContentTypes: []string{"application/json"}}),
		problems(404, 409, 422, 503))
	fuego.Get(f, "/api/dead-letters", s.deadLetters,
		needs(apikeys.Operate), fuego.OptionOperationID("deadLetters"), fuego.OptionSummary("List what was given up"),
		fuego.OptionOverrideDescription("Work that failed for another reason than the picture, and records that could not be handled; the oldest first."),
		fuego.OptionQuery("state", "open (the default) or all"), fuego.OptionQuery("operation", "Of this operation"), fuego.OptionQuery("type", "Whose record has this ce_type"),
		fuego.OptionQuery("code", "With this code"), fuego.OptionQuery("group", "Of this consumer group"), fuego.OptionQuery("job_id", "Of this job"),
		fuego.OptionQuery("since", "Given up at this time or later, RFC 3339"), fuego.OptionQuery("until", "Given up before this time, RFC 3339"),
		fuego.OptionQuery("limit", "How many, 1 to 1000, default 100"), fuego.OptionQuery("after", "Begin after the dead letter with this id"),
		problems(422, 503))
	fuego.Get(f, "/api/dead-letters/{id}", s.deadLetter,
		needs(apikeys.Operate), fuego.OptionOperationID("deadLetter"), fuego.OptionSummary("Read a dead letter and its record"),
		fuego.OptionOverrideDescription("The record is read from the log."), problems(404, 422, 503))
	fuego.Post(f, "/api/dead-letters/redrive", s.redrive,
		needs(apikeys.Operate), fuego.OptionOperationID("redrive"), fuego.OptionSummary("Ask for the work of dead letters again"),
		fuego.OptionOverrideDescription("With dry_run it says what would be done. An operation runs again as a new revision of its job; a record that nobody has taken in is appended again."),
		problems(413, 422, 503))
	fuego.Post(f, "/api/dead-letters/discard", s.discard,
		needs(apikeys.Operate), fuego.OptionOperationID("discard"), fuego.OptionSummary("Let dead letters be"),
		fuego.OptionOverrideDescription("They stay in the topic, and are not listed as open any more."), problems(413, 422, 503))
	fuego.Get(f, "/api/usage", s.usage,
		needs(apikeys.Read), fuego.OptionOperationID("usage"), fuego.OptionSummary("What was used"),
		fuego.OptionOverrideDescription("Operations, bytes, processor time and failures by UTC day and operation, counted from the log: each outcome once."),
		fuego.OptionQuery("from", "The first UTC day, such as 2026-11-01"), fuego.OptionQuery("to", "The last UTC day; at most 366 days (USAGE_MAX_DAYS)"),
		fuego.OptionQuery("operation", "Of this operation alone"), fuego.OptionQuery("group", "day, operation or total: what has a row of its own; without it, each operation of each day"),
		fuego.OptionQuery("after", "A position from a Pixtools-Position header: wait until it is visible"),
		problems(422, 503))
	fuego.Get(f, "/api/queues", s.queues,
		needs(apikeys.Operate), fuego.OptionOperationID("queues"), fuego.OptionSummary("What waits and what runs"),
		fuego.OptionOverrideDescription("For operators: how much is to be done of each operation, and for how long it waits."),
		problems(503))
	fuego.Get(f, "/api/activity", s.activity,
		needs(apikeys.Operate), fuego.OptionOperationID("activity"), fuego.OptionSummary("What happened in the last hour"),
		fuego.OptionOverrideDescription("For operators: jobs accepted, results by operation and failures by kind, as the log tells them since this process started."))
	fuego.Get(f, "/api/lag", s.lag,
		needs(apikeys.Operate), fuego.OptionOperationID("lag"), fuego.OptionSummary("How far consumer groups are behind"),
		fuego.OptionOverrideDescription("For operators: of each group that follows the log, how many records it has not passed, and how old the oldest of them is."),
		problems(503))
	fuego.Get(f, "/api/read-models", s.readModels,
		needs(apikeys.Operate), fuego.OptionOperationID("readModels"), fuego.OptionSummary("Which read models there are"),
		fuego.OptionOverrideDescription("For operators: the live one and those that replays have made beside it, and how far a replay is that is at work."),
		problems(503))
	fuego.Get(f, "/api/session", s.session, needs(anyScope), fuego.OptionOperationID("session"), fuego.OptionSummary("Whose requests these are"),
		fuego.OptionOverrideDescription("Tenant and scopes of the key or the session; signed_in is false where there is none."), problems(401, 503))
	fuego.Post(f, "/api/session", s.signIn, needs(anyScope), fuego.OptionOperationID("signIn"), fuego.OptionSummary("Sign a browser in"),
		fuego.OptionOverrideDescription("Takes an API key in a header and sets a cookie, which no script can read, in its place. For pages of this origin."), problems(401, 403, 503))
	fuego.Delete(f, "/api/session", s.signOut, needs(anyScope), fuego.OptionOperationID("signOut"), fuego.OptionSummary("Sign a browser out"),
		fuego.OptionOverrideDescription("Drops the cookie. The key goes on working."), problems(401, 403, 503))
	fuego.Get(f, "/api/health", s.health,
		open, fuego.OptionOperationID("health"), fuego.OptionSummary("What this process can reach"),
		fuego.OptionOverrideDescription("Answers within two seconds, whatever is down."),
		fuego.OptionAddResponse(http.StatusServiceUnavailable, "A part is unreachable", fuego.Response{Type: Health{}, ContentTypes: []string{"application/json"}}))
	fuego.Get(f, "/api/livez", s.livez, open, fuego.OptionOperationID("livez"), fuego.OptionSummary("The process answers"), fuego.OptionOverrideDescription("Liveness probe."))
	fuego.Get(f, "/api/readyz", s.readyz, open, fuego.OptionOperationID("readyz"), fuego.OptionSummary("The process takes requests"), fuego.OptionOverrideDescription("Readiness probe: 503 while the process starts, and from when it is asked to stop. It goes on answering for DRAIN_DELAY then."), problems(503))
}

// describe is the OpenAPI document, with what the framework does not know.
func describe(f *fuego.Server) ([]byte, error) {
	doc := f.OpenAPI.Description()
	doc.OpenAPI = "3.0.3" // what its schemas are written in
	doc.Info = &openapi3.Info{Title: "PixTools", Version: "1",
		Description: "Upload a picture, name the operations, get the results as links."}
	doc.Servers = openapi3.Servers{{URL: "/"}}
	doc.Tags = nil
	doc.Components.SecuritySchemes = securitySchemes()
	for _, item := range doc.Paths.Map() {
		for _, op := range item.Operations() {
			op.Tags = nil
			op.Responses.Delete("default")
			var kept openapi3.Parameters
			for _, p := range op.Parameters {
				if p.Value.In != "header" || p.Value.Name != "Accept" {
					kept = append(kept, p)
				}
			}
			op.Parameters = kept
			onlyTypes(op)
		}
	}
	stream := doc.Paths.Value("/api/jobs/{job_id}/stream").Get
	stream.Responses.Set("200", &openapi3.ResponseRef{Value: openapi3.NewResponse().WithDescription("Events, until either side ends it").
		WithContent(openapi3.NewContentWithSchema(openapi3.NewStringSchema(), []string{"text/event-stream"}))})
	post := doc.Paths.Value("/api/process").Post
	post.RequestBody = uploadSchema()
	post.Responses.Delete("200")
	text := openapi3.NewStringSchema()
	post.Parameters = append(post.Parameters,
		header("Idempotency-Key", "The same as the field idempotency_key", text), header(requestIDHeader, "Echoed, or made", text))
	cancel, retry := doc.Paths.Value("/api/jobs/{job_id}/cancel").Post, doc.Paths.Value("/api/jobs/{job_id}/retry").Post
	cancel.Responses.Delete("200")
	redeliver := doc.Paths.Value("/api/jobs/{job_id}/webhook").Post
	redeliver.Responses.Delete("200")
	retry.Responses.Delete("200")
	retry.RequestBody = jsonBody("What to run again; without it, all that did not complete", RetryRequest{}, false)
	wish := jsonBody("What will be stored", UploadRequest{}, true)
	wish.Value.Content.Get("application/json").Schema.Value.Required = []string{"content_type", "bytes"}
	doc.Paths.Value("/api/uploads").Post.RequestBody = wish
	doc.Paths.Value("/api/dead-letters/redrive").Post.RequestBody = jsonBody("Which dead letters", Selection{}, true)
	doc.Paths.Value("/api/dead-letters/discard").Post.RequestBody = jsonBody("Which dead letters, and why", DiscardRequest{}, true)
	for _, op := range []*openapi3.Operation{post, cancel, retry, redeliver} {
		tellHeader(op.Responses.Value("202").Value, PositionHeader, "Position of the event; pass it as after= to a query. Absent where the job was in the log before")
	}
	deletion := doc.Paths.Value("/api/jobs/{job_id}").Delete
	deletion.Responses.Delete("200")
	deletion.Responses.Set("204", &openapi3.ResponseRef{Value: openapi3.NewResponse().WithDescription("Deleted")})
	tellHeader(deletion.Responses.Value("204").Value, PositionHeader, "Position of the event; pass it as after= to a query")
	for _, name := range []string{"Accepted", "Cancelled", "Retried", "Redelivered", "Job", "JobHistory"} { // the framework passes over the tag
		doc.Components.Schemas[name].Value.Properties["job_id"] = openapi3.NewUUIDSchema().NewRef()
	}
	doc.Components.Schemas["JobPage"].Value.Properties["jobs"].Value.Items.Value.Properties["job_id"] = openapi3.NewUUIDSchema().NewRef()
	for _, op := range []*openapi3.Operation{cancel, retry, redeliver, stream, deletion, doc.Paths.Value("/api/jobs/{job_id}").Get, doc.Paths.Value("/api/jobs/{job_id}/events").Get} {
		op.Parameters.GetByInAndName("path", "job_id").Schema = openapi3.NewUUIDSchema().NewRef()
	}
	for _, name := range []string{"from", "to"} { // the framework would answer in its own words where they are missing
		doc.Paths.Value("/api/usage").Get.Parameters.GetByInAndName("query", name).Required = true
	}
	for _, item := range doc.Paths.Map() {
		for _, op := range item.Operations() {
			guard(doc, op)
		}
	}
	delete(doc.Components.Schemas, "HTTPError")
	delete(doc.Components.Schemas, "unknown-interface")
	raw, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write the OpenAPI document: %w", err)
	}
	return append(raw, '\n'), nil
}

// guard describes who may use a route, what refuses the others, and the limits.
func guard(doc *openapi3.T, op *openapi3.Operation) {
	refusal := func(code int, what string) {
		op.AddResponse(code, openapi3.NewResponse().WithDescription(what).WithContent(openapi3.NewContentWithSchemaRef(
			openapi3.NewSchemaRef("#/components/schemas/Problem", doc.Components.Schemas["Problem"].Value), []string{"application/problem+json"})))
	}
	refusal(http.StatusMisdirectedRequest, "No keys are asked for, and the request was sent to a name that is not in CORS_ORIGINS")
	scope := op.Extensions[scopeMark]
	op.Security = &openapi3.SecurityRequirements{}
	switch scope {
	case openMark, string(anyScope):
		delete(op.Extensions, scopeMark)
		return
	}
	for name := range securitySchemes() {
		op.Security.With(openapi3.NewSecurityRequirement().Authenticate(name))
	}
	slices.SortFunc(*op.Security, func(a, b openapi3.SecurityRequirement) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	op.Description += fmt.Sprintf(" Needs the scope %s.", scope)
	for code, what := range map[int]string{http.StatusUnauthorized: "No valid API key", http.StatusForbidden: "The key lacks the scope, or another site's page has sent this",
		http.StatusTooManyRequests: "Too many requests, of this key or of all"} {
		refusal(code, what)
	}
	for status, response := range op.Responses.Map() {
		switch {
		case status == "401" || status == "403":
			tellHeader(response.Value, "WWW-Authenticate", "How to send a key, and which scope it lacks (RFC 6750)")
		case status == "429":
			tellHeader(response.Value, "Retry-After", "Seconds")
		}
		if status < "300" || status == "429" {
			tellHeader(response.Value, rateLimitHeader, "What is left to the key, of draft-ietf-httpapi-ratelimit-headers-10: r requests, all of them again in t seconds; absent where nothing is counted")
			tellHeader(response.Value, rateLimitPolicyHeader, "The limit: q requests in w seconds")
		}
	}
}

// tellHeader describes a header of an answer.
func tellHeader(response *openapi3.Response, name, description string) {
	if response.Headers == nil {
		response.Headers = openapi3.Headers{}
	}
	response.Headers[name] = &openapi3.HeaderRef{Value: &openapi3.Header{Parameter: openapi3.Parameter{Description: description, Schema: openapi3.NewStringSchema().NewRef()}}}
}

// securitySchemes are the ways to show a key.
func securitySchemes() openapi3.SecuritySchemes {
	key := openapi3.NewSecurityScheme().WithType("http").WithScheme("bearer").WithDescription("An API key, as `pixtools keys create` printed it")
	header := openapi3.NewSecurityScheme().WithType("apiKey").WithIn("header").WithName(keyHeader).WithDescription("The same in a header of its own")
	cookie := openapi3.NewSecurityScheme().WithType("apiKey").WithIn("cookie").WithName(sessionCookie).WithDescription("The session of a browser, from POST /api/session")
	return openapi3.SecuritySchemes{"key": {Value: key}, "keyHeader": {Value: header}, "session": {Value: cookie}}
}

// jsonBody describes a body from the type that it is read into.
func jsonBody(description string, of any, required bool) *openapi3.RequestBodyRef {
	schema, err := openapi3gen.NewSchemaRefForValue(of, nil)
	if err != nil {
		panic(fmt.Sprintf("api: %T cannot be described: %v", of, err)) // at every start: a test sees it
	}
	body := openapi3.NewRequestBody().WithDescription(description).WithRequired(required).WithJSONSchemaRef(schema)
	return &openapi3.RequestBodyRef{Value: body}
}

// frameworkError is what the framework describes of errors that it would answer and we do
// not let it.
const frameworkError = "#/components/schemas/HTTPError"

// onlyTypes keeps the answers' one real content type: JSON, or problems.
func onlyTypes(op *openapi3.Operation) {
	for status, response := range op.Responses.Map() {
		content := openapi3.Content{}
		want := "application/json"
		if status >= "400" && response.Value.Content["application/problem+json"] != nil {
			want = "application/problem+json"
		}
		if media := response.Value.Content[want]; media != nil && (media.Schema == nil || media.Schema.Ref != frameworkError) {
			content[want] = media
		}
		response.Value.Content = content
		if status >= "400" && len(content) == 0 {
			op.Responses.Delete(status)
		}
	}
}

func header(name, description string, schema *openapi3.Schema) *openapi3.ParameterRef {
	return &openapi3.ParameterRef{Value: &openapi3.Parameter{Name: name, In: "header", Description: description, Schema: schema.NewRef()}}
}

// uploadSchema is the form of a submission.
func uploadSchema() *openapi3.RequestBodyRef {
	file := openapi3.NewStringSchema().WithFormat("binary")
	file.Description = "The picture: jpeg, png, webp or avif, at most MAX_UPLOAD_BYTES. This or upload"
	ops := openapi3.NewStringSchema()
	ops.Description, ops.Example = fmt.Sprintf("A JSON array of operation names: %v", operations.Names()), `["webp","avif"]`
	key := openapi3.NewStringSchema().WithMaxLength(longestKey)
	key.Description = "Repeating a request with its key gives the same job"
	hook := openapi3.NewStringSchema().WithFormat("uri").WithMaxLength(egress.LongestURL)
	hook.Description = "Where to post the outcome; without it, to the tenant's address, if there is one"
	params := openapi3.NewStringSchema()
	params.Description, params.Example = "A JSON object: operation name to its parameters", `{"webp":{"quality":80}}`
	stored := openapi3.NewStringSchema()
	stored.Description = "In the place of file: what POST /api/uploads gave as upload, once the file is stored"
	schema := openapi3.NewObjectSchema().WithProperty("file", file).WithProperty("upload", stored).WithProperty("operations", ops).
		WithProperty("idempotency_key", key).WithProperty("webhook_url", hook).WithProperty("operation_params", params)
	schema.Required = []string{"operations"}
	body := openapi3.NewRequestBody().WithRequired(true).WithContent(openapi3.Content{
		"multipart/form-data": openapi3.NewMediaType().WithSchema(schema)})
	return &openapi3.RequestBodyRef{Value: body}
}
