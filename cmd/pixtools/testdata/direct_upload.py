"""Uploads and downloads with Amazon's client, which knows nothing of PixTools.

It prints the status of each request: of those that must be taken, and of those that must be refused.
"""

import hashlib
import json
import os
import sys
import time
import urllib.parse
import urllib.request

import boto3
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.httpsession import URLLib3Session

pixtools, bucket = os.environ["PIXTOOLS"], os.environ["BUCKET"]
session = URLLib3Session()
s3 = boto3.client("s3", endpoint_url=os.environ["ENDPOINT"], config=Config(signature_version="s3v4", s3={"addressing_style": "path"}))


def send(method, url, headers=None, body=None):
    return session.send(AWSRequest(method=method, url=url, headers=headers or {}, data=body).prepare())


def ask(method, path, body=None, kind="application/json"):
    request = urllib.request.Request(pixtools + path, method=method, data=body, headers={"Content-Type": kind})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def sign(content, **more):
    wish = {"content_type": "image/png", "bytes": len(content), "file_name": "photo.png", **more}
    return ask("POST", "/api/uploads", json.dumps(wish).encode())


def submit(upload):
    boundary = "end-of-part"
    parts = {"upload": upload, "operations": '["webp"]'}
    form = "".join(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in parts.items())
    return ask("POST", "/api/process", (form + f"--{boundary}--\r\n").encode(), f"multipart/form-data; boundary={boundary}")["job_id"]


def changed(url, **parameters):
    """The address with other values in its query."""
    parsed = urllib.parse.urlsplit(url)
    query = dict(urllib.parse.parse_qsl(parsed.query))
    query.update({name.replace("_", "-"): change(query[name.replace("_", "-")]) for name, change in parameters.items()})
    return parsed._replace(query=urllib.parse.urlencode(query)).geturl()


def other_signature(signature):
    return ("0" if signature[0] != "0" else "1") + signature[1:]


content = open(sys.argv[1], "rb").read()
signed = sign(content, sha256=hashlib.sha256(content).hexdigest())
url, headers = signed["url"], signed["headers"]
other = content[:-1] + b"!"

refused = {
    "a byte less": send("PUT", url, headers, content[:-1]),
    "a byte more": send("PUT", url, headers, content + b"!"),
    "other bytes": send("PUT", url, headers, other),
    "another type": send("PUT", url, {**headers, "Content-Type": "text/html"}, content),
    "another key": send("PUT", url.replace("/uploads/", "/raw/"), headers, content),
    "another signature": send("PUT", changed(url, X_Amz_Signature=other_signature), headers, content),
    "a longer life": send("PUT", changed(url, X_Amz_Expires=lambda _: "86400"), headers, content),
}
taken = {"upload": send(signed["method"], url, headers, content)}

job = submit(signed["upload"])
deadline = time.monotonic() + 100
while (told := ask("GET", f"/api/jobs/{job}?wait=5"))["outcome"] is None and time.monotonic() < deadline:
    pass
if told["outcome"] != "SUCCEEDED":
    sys.exit(f"the job ended otherwise: {told}")
link = told["result_urls"]["webp"]
taken["download"] = download = send("GET", link)
refused["a download's signature"] = send("GET", changed(link, X_Amz_Signature=other_signature))

# Boto3 finds the same in the bucket, by its own way.
(result,) = s3.list_objects_v2(Bucket=bucket, Prefix=f"processed/{job}/")["Contents"]
(source,) = s3.list_objects_v2(Bucket=bucket, Prefix=f"raw/{job}/")["Contents"]
if s3.get_object(Bucket=bucket, Key=result["Key"])["Body"].read() != download.content:
    sys.exit("the link leads to something else than the result")
if s3.get_object(Bucket=bucket, Key=source["Key"])["Body"].read() != content:
    sys.exit("the job's source is something else than was uploaded")

# A link that boto3 signs is taken, and not any more once it has expired.
short = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": result["Key"]}, ExpiresIn=2)
taken["a link of boto3"] = send("GET", s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": result["Key"]}))
while (late := send("GET", short)).status_code == 200 and time.monotonic() < deadline:
    pass
refused["an expired link"] = late

print(json.dumps({"taken": {name: answer.status_code for name, answer in taken.items()},
                  "refused": {name: answer.status_code for name, answer in refused.items()}}))
