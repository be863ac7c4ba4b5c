"""The lexikon service's view of its tables, through SQLAlchemy: reads commands as JSON lines.

    {"read": ID}                      the row, with the Python type of each value
    {"verify": KEY, "secret": S}      the owner where the v0.9 or the v1.0 rules accept the key
    {"write": {...}}                  adds a row
"""

import datetime
import hashlib
import hmac
import json
import sys

from sqlalchemy import Boolean, Column, DateTime, ForeignKey, String, create_engine
from sqlalchemy.orm import Session, declarative_base

Base = declarative_base()


class User(Base):
    __tablename__ = "users"
    id = Column(String, primary_key=True)
    is_active = Column(Boolean)


class ApiKey(Base):
    __tablename__ = "api_keys"
    id = Column(String, primary_key=True)
    user_id = Column(String, ForeignKey("users.id"), nullable=False)
    key_hash = Column(String, unique=True, index=True, nullable=False)
    name = Column(String, nullable=False)
    scopes = Column(String, nullable=False)
    is_active = Column(Boolean)
    last_used_at = Column(DateTime)
    created_at = Column(DateTime)
    expires_at = Column(DateTime)


TIMES = ["last_used_at", "created_at", "expires_at"]


def read(session, id):
    row = session.get(ApiKey, id)
    values = {column.name: getattr(row, column.name) for column in ApiKey.__table__.columns}
    return {name: [type(value).__name__, str(value)] for name, value in values.items()}


def verify(session, key, secret):
    hashes = [
        hashlib.sha256(key.encode()).hexdigest(),
        hmac.new(secret.encode(), key.encode(), hashlib.sha256).hexdigest(),
    ]
    for key_hash in hashes:
        row = session.query(ApiKey).filter(ApiKey.key_hash == key_hash).first()
        if row is None or not row.is_active:
            continue
        if row.expires_at is not None and row.expires_at < datetime.datetime.now():
            continue
        owner = session.get(User, row.user_id)
        return owner.id if owner is not None and owner.is_active else None
    return None


def write(session, values):
    for name in TIMES:
        if name in values:
            values[name] = datetime.datetime.fromisoformat(values[name])
    session.add(ApiKey(**values))
    session.commit()
    return values["id"]


with Session(create_engine("sqlite:///" + sys.argv[1])) as session:
    for line in sys.stdin:
        command = json.loads(line)
        if "read" in command:
            answer = read(session, command["read"])
        elif "verify" in command:
            answer = verify(session, command["verify"], command["secret"])
        else:
            answer = write(session, command["write"])
        print(json.dumps(answer))
