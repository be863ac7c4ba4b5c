"""The lexikon service at work: writes through SQLAlchemy without a pause, until its input ends.

Prints a line "writing" once it has begun, and "N writes" at the end. A write that fails ends it.
"""

import datetime
import itertools
import sys
import threading

from sqlalchemy import Boolean, Column, DateTime, ForeignKey, String, create_engine
from sqlalchemy.orm import Session, declarative_base

Base = declarative_base()


class User(Base):
    __tablename__ = "users"
    id = Column(String, primary_key=True)
    email = Column(String, nullable=False)
    first_name = Column(String, nullable=False)
    last_name = Column(String, nullable=False)
    language = Column(String, nullable=False)
    adoption_level = Column(String, nullable=False)
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


def write(session, number):
    """Everything that can be done to a key and its owner, each by a transaction of its own."""
    name = f"writer-{number}"
    names = ["id", "email", "first_name", "last_name", "language", "adoption_level"]
    user = User(**dict.fromkeys(names, name), is_active=True)
    session.add(user)
    session.commit()
    key = ApiKey(id=name, user_id=name, key_hash=name, name=name, scopes="read", is_active=True)
    session.add(key)
    session.commit()
    key.last_used_at = datetime.datetime.now()
    session.commit()
    key.is_active = False
    session.commit()
    user.is_active = False
    session.commit()
    session.delete(key)
    session.commit()
    session.delete(user)
    session.commit()
    return 7


ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
writes = 0
engine = create_engine("sqlite:///" + sys.argv[1], connect_args={"timeout": 60})
with Session(engine) as session:
    for number in itertools.count():
        writes += write(session, number)
        if number == 0:
            print("writing", flush=True)
        if ended.is_set():
            break
print(writes, "writes")
